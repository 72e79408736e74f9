"""The file of certificate authorities that a program trusts when it talks to this machine's backend over TLS.

Standard library only. Rules: `SSL_CERT_FILE` replaces what a program trusts, so the bundle holds what it trusted
before (the file that was named there, else the system's authorities) and, after that, the backend's own authority;
the bundle remembers what it was made from, so that making it again from its own name loses nothing.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fal_notebook.errors import BackendError
from fal_notebook.places import Places

__all__ = ["files_url", "write_bundle"]

_FROM = "# made from: "
_SYSTEM = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # Alpine, macOS
)


_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def files_url(record: Mapping[str, Any]) -> str:
    """Return where fal's clients keep files, from a backend's record.

    A file's address stands on the one that it was uploaded to, and an App's own code, which is to read it, knows
    nothing of our authority: on this machine it is plain http, elsewhere TLS.
    """
    url, tls_url = (str(record.get(name) or "").rstrip("/") for name in ("url", "tls_url"))
    return url if urlsplit(url).hostname in _LOOPBACK else tls_url


def write_bundle(places: Places, environ: Mapping[str, str] | None = None) -> Path:
    """Write the bundle for who has this environment and return its path.

    Raises: BackendError when the backend has no authority of its own, or a named file cannot be read.
    """
    env = os.environ if environ is None else environ
    bundle = places.tls / "bundle.pem"
    source = _source(env.get("SSL_CERT_FILE"), bundle)
    try:
        own = (places.tls / "ca.pem").read_text()
        trusted = source.read_text() if source is not None else ""
    except OSError as error:
        raise BackendError(
            f"The certificates cannot be put together: {error}.",
            fix="Start the backend with `fal-nb serve --tls`.",
            code="backend.no_tls",
        ) from error
    text = f"{_FROM}{source or ''}\n{trusted.rstrip()}\n{own}"
    if not bundle.exists() or bundle.read_text() != text:
        new = bundle.with_name(f"bundle.{os.getpid()}")
        new.write_text(text)
        new.replace(bundle)
    return bundle


def _source(named: str | None, bundle: Path) -> Path | None:
    """Return the file whose authorities are in use without the bundle."""
    if named and Path(named) != bundle:
        return Path(named)
    if named and bundle.exists():
        first, _, _ = bundle.read_text().partition("\n")
        before = first.removeprefix(_FROM)
        if before != first and before and Path(before).exists():
            return Path(before)
    return _system()


def _system() -> Path | None:
    found = [
        name for name in (ssl.get_default_verify_paths().openssl_cafile, *_SYSTEM) if Path(name).is_file()
    ]
    if found:
        return Path(found[0])
    try:
        # A machine without authorities of its own: what Python's http clients bring along.
        return Path(import_module("certifi").where())
    except ModuleNotFoundError:
        return None
