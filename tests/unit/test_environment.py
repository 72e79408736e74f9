"""What a build sees of the backend's surroundings."""

from __future__ import annotations

from pathlib import Path

from fal_backend.adapters.builder_uv.environment import (
    IndexSettings,
    build_environment,
    parse_pip_config,
    redact,
)


def test_a_build_gets_the_listed_variables_and_no_others() -> None:
    given = {
        "PATH": "/bin", "HOME": "/h", "LANG": "C", "TZ": "UTC", "SSL_CERT_FILE": "c", "SSL_CERT_DIR": "d",
        "REQUESTS_CA_BUNDLE": "b", "HTTPS_PROXY": "p", "https_proxy": "p", "no_proxy": "n", "ALL_PROXY": "a",
        "UV_INDEX_URL": "u", "PIP_INDEX_URL": "i",
    }  # fmt: skip
    secret = {
        "AWS_SECRET_ACCESS_KEY": "s",
        "FAL_KEY": "k",
        "PYTHONPATH": "x",
        "VIRTUAL_ENV": "v",
        "LD_PRELOAD": "l",
    }
    assert build_environment(given | secret) == given


def test_pips_settings_are_read_with_pips_order_of_precedence() -> None:
    settings = parse_pip_config(
        [
            "global.index-url='https://global/simple'",
            "install.index-url='https://install/simple'",
            ":env:.find-links='/wheels /more'",
            "global.find-links='/other'",
            "global.extra-index-url='https://a/simple\\nhttps://b/simple'",
            "global.cert='/ca.pem'",
            "freeze.timeout='10'",
            "WARNING: something",
            "global.broken=not a literal",
        ]
    )
    assert settings == IndexSettings(
        index_url="https://install/simple",
        extra_index_urls=("https://a/simple", "https://b/simple"),
        find_links=("/wheels", "/more"),
        cert="/ca.pem",
    )


def test_uv_is_told_what_pip_knows_unless_it_was_told_otherwise(tmp_path: Path) -> None:
    settings = IndexSettings("https://i/simple", ("https://e/simple",), (str(tmp_path),), str(tmp_path))
    assert settings.arguments({}) == [
        "--index-url=https://i/simple",
        "--extra-index-url=https://e/simple",
        f"--find-links={tmp_path}",
    ]
    assert settings.arguments({"UV_DEFAULT_INDEX": "x", "UV_INDEX": "y", "UV_FIND_LINKS": "z"}) == []
    assert settings.variables({}) == {
        "SSL_CERT_FILE": str(tmp_path),
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert settings.variables({"SSL_CERT_FILE": "x", "UV_INDEX_STRATEGY": "first-index"}) == {}


def test_places_that_are_not_there_are_left_out_and_named(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    settings = IndexSettings(
        "file:///not/there",
        ("https://e/simple", "file:///nor/this", here.as_uri()),
        ("/not/that", str(here)),
        "/no/cert",
    )
    kept, missing = settings.existing()
    assert kept == IndexSettings(None, ("https://e/simple", here.as_uri()), (str(here),), None)
    assert missing == ("file:///not/there", "file:///nor/this", "/not/that")


def test_passwords_in_urls_are_not_shown() -> None:
    assert redact("at https://me:pw@host/simple and http://x/") == "at https://****@host/simple and http://x/"
