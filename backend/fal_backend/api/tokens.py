"""Tokens that open a websocket: short-lived, signed, good for the named apps only.

Rules: a token says which key asked for it, and is worth no more than that key is when it is shown: a revoked key
takes its tokens with it. It is shown in a URL, so it ends soon and opens nothing but websockets of its apps.
The form is that of a JWT (HS256), which browsers' tools can read; the algorithm is ours, never the token's.
Source: fal_client 1.0.3, `get_realtime_token`; @fal-ai/client 1.10.1, `getTemporaryAuthToken`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from fal_backend.api.caller import problem
from fal_backend.domain.access import Operation, Principal, Target, Verdict, may
from fal_backend.domain.request import Refusal
from fal_notebook.errors import AuthError

__all__ = ["TOKEN_QUERY", "Holders", "Tokens", "split_token"]

TOKEN_QUERY = b"fal_jwt_token"
"""Name of the query parameter that carries a token."""

_PURPOSE = b"fal-nb websocket tokens 1"
_DEFAULT_S, _LONGEST_S = 120, 24 * 3600
_MOST_APPS, _LONGEST_NAME, _LONGEST_BODY, _LONGEST_TOKEN = 64, 256, 64 * 1024, 32 * 1024
_JSON = (b"content-type", b"application/json")


def split_token(raw: bytes) -> tuple[bytes, bytes | None]:
    """Return a path with its query but without the token in it, and the token."""
    path, _, query = raw.partition(b"?")
    token, kept = None, []
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == TOKEN_QUERY:
            token = unquote_to_bytes(value)
        elif part:
            kept.append(part)
    return (path + b"?" + b"&".join(kept) if kept else path), token


class Holders(Protocol):
    """Says whose key it is."""

    def principal(self, authorization: bytes | None) -> Principal | None:
        """Return the key's owner, None without a key. Raises: AuthError when the key is no good."""
        ...

    def holder(self, key_id: str) -> Principal | None:
        """Return the owner of a key that is good now, None otherwise."""
        ...


@dataclass(frozen=True, slots=True)
class _Wish:
    apps: list[str]
    seconds: int


class Tokens:
    """Makes and reads tokens, and serves `POST /rest/tokens/`."""

    def __init__(self, secret: bytes, holders: Holders) -> None:
        """secret is the instance's: tokens outlive a restart."""
        self._key = hmac.digest(secret, _PURPOSE, "sha256")
        self._holders = holders

    def make(self, holder: Principal, apps: list[str], seconds: int) -> str:
        """Return a token of a key's owner for some apps (`alias` or `owner/alias`)."""
        now = int(time.time())
        claims = {"sub": holder.account, "kid": holder.key_id, "apps": apps, "iat": now, "exp": now + seconds}
        signed = f"{_HEAD}.{_encode(json.dumps(claims, separators=(',', ':')).encode())}"
        return f"{signed}.{_encode(self._sign(signed.encode()))}"

    def open(self, token: bytes, app: str) -> Principal:
        """Return who asked for a token, if it is good for an app (`owner/alias`). Raises: Refusal 401, 403."""
        claims = self._claims(token)
        if time.time() >= claims["exp"]:
            raise Refusal(401, "The token has expired")
        holder = self._holders.holder(claims["kid"])
        if holder is None:
            raise Refusal(401, "The key that asked for this token is no longer good")
        if app not in claims["apps"] and app.partition("/")[2] not in claims["apps"]:
            raise Refusal(403, f"This token is not for '{app}'")
        return holder

    def _claims(self, token: bytes) -> dict[str, Any]:
        signed, _, signature = token[:_LONGEST_TOKEN].rpartition(b".")
        head, _, body = signed.partition(b".")
        try:
            is_ours = head == _HEAD.encode() and hmac.compare_digest(_decode(signature), self._sign(signed))
            claims = json.loads(_decode(body)) if is_ours else None
        except (binascii.Error, ValueError):
            claims = None
        if claims is None:
            raise Refusal(401, "The token is not valid here")
        return dict(claims)

    def _sign(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, hashlib.sha256)

    # POST /rest/tokens/

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer a request for a token with the token as a JSON string."""
        assert scope["type"] == "http"
        headers: tuple[tuple[bytes, bytes], ...] = ()
        try:
            if scope["method"] != "POST":
                raise Refusal(405, "Tokens are asked for with POST", headers=((b"allow", b"POST"),))
            holder = self._asker(dict(scope["headers"]).get(b"authorization"))
            wish = _wish(await _body(receive))
            status, body = 200, json.dumps(self.make(holder, wish.apps, wish.seconds)).encode()
        except Refusal as refusal:
            status, headers = refusal.status, refusal.headers
            body = problem(refusal.detail, refusal.error_type)
        fields = [_JSON, (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store"), *headers]
        await send({"type": "http.response.start", "status": status, "headers": fields, "trailers": False})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _asker(self, authorization: bytes | None) -> Principal:
        try:
            holder = self._holders.principal(authorization)
        except AuthError as error:
            raise Refusal(401, error.message) from error
        if holder is None:
            raise Refusal(401, "A key is needed to ask for a token: send `Authorization: Key <id>:<secret>`")
        # Which apps it opens is judged when it is shown; a key that may call none gets no token.
        if may(holder, Operation.WS, Target(holder.account)) is not Verdict.OK:
            raise Refusal(403, "This key may not call apps")
        return holder


async def _body(receive: ASGIReceiveCallable) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refusal(400, "The request broke off")
        body += message["body"]
        more = message["more_body"]
        if len(body) > _LONGEST_BODY:
            raise Refusal(413, "A request for a token has at most 64 KiB")
    return body


def _wish(body: bytes) -> _Wish:
    try:
        asked = json.loads(body)
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        raise Refusal(422, 'Send {"allowed_apps": ["<alias>"], "token_expiration": <seconds>}')
    apps, seconds = asked.get("allowed_apps"), asked.get("token_expiration", _DEFAULT_S)
    if not isinstance(apps, list) or not 0 < len(apps) <= _MOST_APPS or not all(map(_is_name, apps)):
        raise Refusal(
            422, f"allowed_apps must be a list of 1 to {_MOST_APPS} names, `alias` or `owner/alias`"
        )
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds <= _LONGEST_S:
        raise Refusal(422, f"token_expiration must be a whole number of seconds from 1 to {_LONGEST_S}")
    return _Wish(apps, seconds)


def _is_name(app: object) -> bool:
    return isinstance(app, str) and 0 < len(app) <= _LONGEST_NAME and app.count("/") <= 1


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


_HEAD = _encode(b'{"alg":"HS256","typ":"JWT"}')
