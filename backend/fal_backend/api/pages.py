"""The backend's own web pages: the gallery of public apps, and each one's playground.

Rules: no key, no session, no cookie: a page shows what anyone may call. Scripts run by nonce only, so that
nothing an app answers can run; the data of a page stands in it as JSON.
"""

from __future__ import annotations

import hashlib
import html
import json
import secrets
from http import HTTPStatus
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from fal_notebook.wire import AppDetail, AppSummary

__all__ = ["Pages", "PublicApps"]


class PublicApps(Protocol):
    """What the pages need of the catalogue."""

    async def public_app(self, owner: str, alias: str, base_url: str) -> AppDetail | None: ...
    async def public_apps(self, base_url: str) -> list[AppSummary]: ...


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style nonce="{nonce}">main{{max-width:1120px;margin:0 auto;padding:16px}}body{{margin:0}}</style>
</head>
<body>
<main><div id="fal"></div></main>
<noscript>This page needs JavaScript.</noscript>
<script id="fal-data" type="application/json">{data}</script>
<script type="module" nonce="{nonce}">
import {{ mountPage }} from "/static/fal-ui.js?v={version}";
mountPage(document.getElementById("fal"), JSON.parse(document.getElementById("fal-data").textContent));
</script>
</body>
</html>
"""

_PLAIN = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>{title}</title></head>
<body><h1>{title}</h1><p>{text}</p></body></html>
"""


class Pages:
    """Answers everything that is neither control API nor a call of an app."""

    def __init__(self, catalog: PublicApps, static_dir: Path) -> None:
        self._catalog = catalog
        self._bundle = static_dir / "fal-ui.js"
        self._read: tuple[int, bytes, str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response = await self._respond(scope)
        await response(scope, receive, send)

    async def _respond(self, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            return JSONResponse({"detail": "Method Not Allowed"}, 405, {"allow": "GET, HEAD"})
        base = _base_url(scope)
        match scope["path"].strip("/").split("/"):
            case [""]:
                return await self._gallery(base)
            case ["playground", owner, alias]:
                return await self._playground(unquote(owner), unquote(alias), base)
            case ["playground", owner, alias, "app.json"]:
                return await self._app_json(unquote(owner), unquote(alias), base)
            case ["static", "fal-ui.js"]:
                return self._static()
            case _:
                return JSONResponse({"detail": "Not Found"}, 404)

    async def _gallery(self, base: str) -> Response:
        apps = [app.model_dump(mode="json") for app in await self._catalog.public_apps(base)]
        return self._page("Public apps", {"page": "gallery", "apps": apps})

    async def _playground(self, owner: str, alias: str, base: str) -> Response:
        app = await self._catalog.public_app(owner, alias, base)
        if app is None:
            text = "There is no public app of this name. Apps that need a key have their playground in JupyterLab."
            content = _PLAIN.format(title="Not found", text=text)
            return HTMLResponse(content, HTTPStatus.NOT_FOUND, _headers(None))
        return self._page(app.alias, {"page": "playground", "app": _shown(app)})

    async def _app_json(self, owner: str, alias: str, base: str) -> Response:
        app = await self._catalog.public_app(owner, alias, base)
        if app is None:
            return JSONResponse({"detail": f"Application '{alias[:80]}' not found"}, 404)
        return JSONResponse(_shown(app), headers={"cache-control": "no-store"})

    def _page(self, title: str, data: dict[str, object]) -> Response:
        bundle = self._content()
        if bundle is None:
            text = "The interface is not built here. In a checkout, run: make front"
            return HTMLResponse(_PLAIN.format(title=title, text=text), headers=_headers(None))
        nonce = secrets.token_urlsafe(16)
        # Within a script element only "<" could end it.
        text = json.dumps(data).replace("<", "\\u003c")
        page = _PAGE.format(title=html.escape(title), nonce=nonce, data=text, version=bundle[1])
        return HTMLResponse(page, headers=_headers(nonce))

    def _static(self) -> Response:
        bundle = self._content()
        if bundle is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        headers = {"cache-control": "public, max-age=3600", "x-content-type-options": "nosniff"}
        return Response(bundle[0], media_type="text/javascript", headers=headers)

    def _content(self) -> tuple[bytes, str] | None:
        """Return the bundle and its version, read again when it was built anew."""
        try:
            changed = self._bundle.stat().st_mtime_ns
            if self._read is None or self._read[0] != changed:
                content = self._bundle.read_bytes()
                self._read = (changed, content, hashlib.sha256(content).hexdigest()[:12])
        except OSError:
            return None
        return self._read[1], self._read[2]


def _shown(app: AppDetail) -> dict[str, object]:
    """Return what a stranger may see of an app: how to call it, not how it is made or where it runs."""
    hidden: dict[str, object] = {
        "requirements": [],
        "captures": [],
        "cell": None,
        "notebook": None,
        "deployment": None,
        "runners": [],
        "state_reason": None,
    }
    return app.model_copy(update=hidden).model_dump(mode="json")


def _base_url(scope: Scope) -> str:
    host = Headers(scope=scope).get("host", "localhost")
    return f"{scope.get('scheme', 'http')}://{host}"


def _headers(nonce: str | None) -> dict[str, str]:
    script = f"'self' 'nonce-{nonce}'" if nonce else "'none'"
    style = f"'nonce-{nonce}'" if nonce else "'none'"
    policy = {
        "default-src": "'none'",
        "script-src": script,
        "style-src": style,
        "connect-src": "'self'",
        "img-src": "'self' data: blob: https:",
        "media-src": "'self' data: blob: https:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
    }
