"""The backend's own certificate authority, for callers of this machine who insist on https.

Rules: the authority can vouch only for the names of this backend (a critical name constraint), so that trusting it
trusts nobody else; private keys are 0600 and never leave their folder. The server's certificate lives a year and is
made anew before it ends, or when the backend answers for another name; a new authority only when the old one may not
vouch for a name, or ends.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TypeVar

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["LocalAuthority"]

log = structlog.get_logger()

_AUTHORITY_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=365)
_RENEW_BEFORE = timedelta(days=30)
_LOOK_S = 12 * 3600.0
_BACKDATED = timedelta(hours=1)
"""A clock that was set back a little must not make a new certificate one of the future."""

_T = TypeVar("_T", bound=x509.ExtensionType)
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")

_Address = IPv4Address | IPv6Address
_Name = str | _Address


class LocalAuthority:
    """The certificates in one folder, for the given host names and addresses."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._names = sorted({_name(text) for text in names if _is_name(text)}, key=str)
        self._context: ssl.SSLContext | None = None

    @property
    def certificate(self) -> Path:
        """The authority's certificate: what a caller has to trust."""
        return self._folder / "ca.pem"

    def context(self) -> ssl.SSLContext:
        """Return the server's side of TLS; certificates are made where there are none that hold."""
        self._ensure(datetime.now(UTC))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # A ticket is read right after the handshake. Clients that read in one thread and write in another, as fal's
        # websockets do, lose their first bytes when both happen at once: Python's ssl before 3.13 is not safe there.
        context.num_tickets = 0
        context.load_cert_chain(self._folder / "server.pem", self._folder / "server.key")
        self._context = context
        return context

    async def keep(self) -> None:
        """Renew the server's certificate before it ends; connections opened later get the new one."""
        while True:
            await asyncio.sleep(_LOOK_S)
            is_new = await asyncio.to_thread(self._ensure, datetime.now(UTC))
            if is_new and self._context is not None:
                self._context.load_cert_chain(self._folder / "server.pem", self._folder / "server.key")
                log.info("tls.renewed")

    def _ensure(self, now: datetime) -> bool:
        """Make what is missing, ends soon or is for other names; return whether anything was made."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority = _read(self.certificate)
        key = _read_key(self._folder / "ca.key")
        made = False
        if authority is None or key is None or not self._is_good_authority(authority, key, now):
            key, authority = self._make_authority(now)
            made = True
        leaf = _read(self._folder / "server.pem")
        if made or leaf is None or not self._is_good_leaf(leaf, authority, now):
            self._make_leaf(authority, key, now)
            made = True
        return made

    def _is_good_authority(
        self, authority: x509.Certificate, key: ec.EllipticCurvePrivateKey, now: datetime
    ) -> bool:
        constraints = _extension(authority, x509.NameConstraints)
        permitted = set((constraints.permitted_subtrees if constraints else None) or ())
        return (
            now + _LEAF_LIFE < authority.not_valid_after_utc
            and authority.public_key() == key.public_key()
            and permitted >= {_subtree(name) for name in self._names}
        )

    def _is_good_leaf(self, leaf: x509.Certificate, authority: x509.Certificate, now: datetime) -> bool:
        found = _extension(leaf, x509.SubjectAlternativeName)
        key = _read_key(self._folder / "server.key")
        return (
            now + _RENEW_BEFORE < leaf.not_valid_after_utc
            and leaf.issuer == authority.subject
            and key is not None
            and key.public_key() == leaf.public_key()
            and found is not None
            and set(found) == {_general(name) for name in self._names}
        )

    def _make_authority(self, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        # A number in the name: two authorities of one machine are two names, in a bundle and in a browser's list.
        name = _subject(f"fal-notebook local authority {x509.random_serial_number() % 10**8:08}")
        public = key.public_key()
        builder = _certificate(name, name, public, now, _AUTHORITY_LIFE)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(is_authority=True), critical=True)
        builder = builder.add_extension(
            x509.NameConstraints([_subtree(name) for name in self._names], None), critical=True
        )
        authority = builder.sign(key, hashes.SHA256())
        _write_key(self._folder / "ca.key", key)
        _write(self.certificate, authority.public_bytes(serialization.Encoding.PEM), 0o644)
        return key, authority

    def _make_leaf(self, authority: x509.Certificate, key: ec.EllipticCurvePrivateKey, now: datetime) -> None:
        own = ec.generate_private_key(ec.SECP256R1())
        builder = _certificate(_subject("fal-notebook"), authority.subject, own.public_key(), now, _LEAF_LIFE)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(is_authority=False), critical=True)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general(name) for name in self._names]), critical=False
        )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        leaf = builder.add_extension(issuer, critical=False).sign(key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        _write_key(self._folder / "server.key", own)
        _write(self._folder / "server.pem", leaf.public_bytes(pem) + authority.public_bytes(pem), 0o644)


def _is_name(text: str) -> bool:
    """Return whether a certificate can hold it: a machine may be called anything."""
    return not isinstance(name := _name(text), str) or _HOST.fullmatch(name) is not None


def _name(text: str) -> _Name:
    try:
        return ip_address(text.strip("[]"))
    except ValueError:
        return text.lower()


def _general(name: _Name) -> x509.GeneralName:
    return x509.DNSName(name) if isinstance(name, str) else x509.IPAddress(name)


def _subtree(name: _Name) -> x509.GeneralName:
    return x509.DNSName(name) if isinstance(name, str) else x509.IPAddress(ip_network(name))


def _subject(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _extension(certificate: x509.Certificate, kind: type[_T]) -> _T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _read(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    _write(path, pem, 0o600)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file in one step; it never exists with a wider mode."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    new.replace(path)
