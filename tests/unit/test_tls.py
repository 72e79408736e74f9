from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fal_backend.adapters.tls import LocalAuthority

NAMES = ["localhost", "127.0.0.1", "::1", "gpu-box", "not a name"]


def greet(server: ssl.SSLContext, trusted: Path, name: str) -> int:
    """Shake hands in memory, as a strict client that trusts one file; return how many bytes are sent after it.

    Raises: SSLCertVerificationError.
    """
    client = ssl.create_default_context(cafile=str(trusted))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(6):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return to_client.pending


def names_of(folder: Path) -> set[str]:
    leaf = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "gpu-box"])
def test_the_server_is_known_by_each_of_its_names(tmp_path: Path, name: str) -> None:
    authority = LocalAuthority(tmp_path, NAMES)
    greet(authority.context(), authority.certificate, name)


def test_nothing_comes_after_the_handshake_that_a_client_would_read_while_it_writes(tmp_path: Path) -> None:
    authority = LocalAuthority(tmp_path, NAMES)
    assert greet(authority.context(), authority.certificate, "localhost") == 0


def test_another_name_is_refused(tmp_path: Path) -> None:
    authority = LocalAuthority(tmp_path, NAMES)
    with pytest.raises(ssl.SSLCertVerificationError):
        greet(authority.context(), authority.certificate, "evil.example")


def test_keys_are_private_and_the_certificate_lives_a_year(tmp_path: Path) -> None:
    LocalAuthority(tmp_path / "tls", NAMES).context()
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((tmp_path / "tls" / name).stat().st_mode) == 0o600
    leaf = x509.load_pem_x509_certificate((tmp_path / "tls" / "server.pem").read_bytes())
    assert timedelta(days=364) < leaf.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=365)


def test_even_with_its_key_the_authority_vouches_for_nobody_else(tmp_path: Path) -> None:
    authority = LocalAuthority(tmp_path, NAMES)
    authority.context()
    key = serialization.load_pem_private_key((tmp_path / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
    own = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "evil.example")])
    forged = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject)
        .public_key(own.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("evil.example")]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "evil.pem").write_bytes(
        forged.public_bytes(pem)
        + own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "evil.pem")
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
        greet(server, authority.certificate, "evil.example")


def test_what_holds_is_kept_over_a_restart(tmp_path: Path) -> None:
    LocalAuthority(tmp_path, NAMES).context()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    LocalAuthority(tmp_path, reversed(NAMES)).context()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_certificate_that_ends_soon_is_made_anew_by_the_same_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fal_backend.adapters.tls._LEAF_LIFE", timedelta(days=29))
        LocalAuthority(tmp_path, NAMES).context()
    before, trusted = (tmp_path / "server.pem").read_bytes(), (tmp_path / "ca.pem").read_bytes()
    authority = LocalAuthority(tmp_path, NAMES)
    greet(authority.context(), authority.certificate, "localhost")
    assert (tmp_path / "server.pem").read_bytes() != before
    assert (tmp_path / "ca.pem").read_bytes() == trusted


def test_a_new_name_needs_a_new_authority_and_fewer_names_do_not(tmp_path: Path) -> None:
    LocalAuthority(tmp_path, NAMES).context()
    trusted = (tmp_path / "ca.pem").read_bytes()
    LocalAuthority(tmp_path, ["localhost"]).context()
    assert ((tmp_path / "ca.pem").read_bytes(), names_of(tmp_path)) == (trusted, {"localhost"})
    LocalAuthority(tmp_path, [*NAMES, "another"]).context()
    assert (tmp_path / "ca.pem").read_bytes() != trusted
    assert "another" in names_of(tmp_path)


@pytest.mark.parametrize("name", ["ca.key", "ca.pem", "server.key", "server.pem"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, name: str) -> None:
    LocalAuthority(tmp_path, NAMES).context()
    (tmp_path / name).write_text("damaged")
    authority = LocalAuthority(tmp_path, NAMES)
    greet(authority.context(), authority.certificate, "localhost")
