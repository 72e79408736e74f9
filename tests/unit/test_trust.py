from __future__ import annotations

from pathlib import Path

import pytest

from fal_notebook.errors import BackendError
from fal_notebook.places import Places
from fal_notebook.trust import files_url, write_bundle


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / "ca.pem").write_text("OURS\n")
    return Places(tmp_path)


def test_the_bundle_holds_the_named_file_and_ours(places: Places, tmp_path: Path) -> None:
    (tmp_path / "corporate.pem").write_text("THEIRS\n")
    bundle = write_bundle(places, {"SSL_CERT_FILE": str(tmp_path / "corporate.pem")})
    assert bundle.read_text().splitlines()[1:] == ["THEIRS", "OURS"]


def test_made_again_from_its_own_name_it_loses_nothing(places: Places, tmp_path: Path) -> None:
    (tmp_path / "corporate.pem").write_text("THEIRS\n")
    bundle = write_bundle(places, {"SSL_CERT_FILE": str(tmp_path / "corporate.pem")})
    (tmp_path / "tls" / "ca.pem").write_text("NEWER\n")
    write_bundle(places, {"SSL_CERT_FILE": str(bundle)})
    assert bundle.read_text().splitlines()[1:] == ["THEIRS", "NEWER"]


def test_without_a_named_file_the_systems_authorities_are_kept(places: Places) -> None:
    text = write_bundle(places, {}).read_text()
    assert "BEGIN CERTIFICATE" in text
    assert text.endswith("OURS\n")


def test_a_backend_without_tls_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendError) as raised:
        write_bundle(Places(tmp_path), {})
    assert raised.value.code == "backend.no_tls"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8780/", "http://127.0.0.1:8780"),
        ("http://[::1]:8780", "http://[::1]:8780"),
        ("http://10.0.0.5:8780", "https://localhost:8781"),
    ],
)
def test_files_go_where_an_app_can_read_them_and_nobody_can_listen(url: str, expected: str) -> None:
    assert files_url({"url": url, "tls_url": "https://localhost:8781/"}) == expected
