"""fal's storage: `/rest/storage/…` to begin uploads, `/files/…` to send and to fetch files; plain ASGI.

Rules: no body is ever held in memory; who uploads shows a key, a token of an hour, a runner's token, or a signed
address; who reads needs to know the address, which cannot be guessed. Addresses in answers stand on the address
that the caller used. Source: FAL protocol, "File storage"; fal-client; fal-js.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from fal_backend.api.auth import Auth
from fal_backend.api.download import plan
from fal_backend.api.head import Headers
from fal_backend.api.problems import status_of
from fal_backend.domain.access import Operation, Target, Verdict, may
from fal_backend.domain.lifetime import lifetime_of
from fal_backend.domain.records import File, FileState
from fal_backend.domain.signature import Grant, SigningKeys, read_grant, read_words, sign_grant, sign_words
from fal_backend.services.files import Files, Label, Part
from fal_notebook.errors import AuthError, FalError, LimitError, NotFoundError, UsageError

__all__ = ["Storage", "runner_environment"]

TOKEN_S = 3600
_JSON_BYTES = 2 * 1024 * 1024
_MULTIPART = "MULTIPART"
_ID = re.compile(r"[0-9a-f]{32}")
_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(\s*;\s*[\w.+-]+=(\"[^\"\\]*\"|[\w.+-]+))*", re.ASCII)
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_BINARY = "application/octet-stream"
_SOCKET_HOST = "localhost"
"""Host, without a port, in what comes over the unix socket: nobody reaches us there by TCP."""


class _Left(Exception):
    """The caller went away before its body was complete."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: Any = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class _Who:
    """Whose files these will be."""

    account: str
    is_runner: bool = False
    key_id: str = "-"
    """The key that was shown, now or for the token; a runner has none."""


def runner_environment(
    keys: SigningKeys, runner_id: str, account: str, *, url: str, socket: str
) -> dict[str, str]:
    """Return what a runner finds us by: its token is good for uploads of this account, while it lives."""
    return {
        "FAL_NB_CDN_URL": url.rstrip("/"),
        "FAL_NB_REST_URL": f"{url.rstrip('/')}/rest",
        "FAL_NB_UPLOAD_SOCKET": socket,
        "FAL_NB_UPLOAD_TOKEN": sign_words(keys, "runner", runner_id, account.encode().hex()),
    }


class _Asked:
    """One request."""

    def __init__(self, scope: Any, receive: Callable[[], Any]) -> None:
        self.method: str = scope["method"]
        self.parts: list[str] = [part for part in scope["path"].split("/") if part]
        self.query: str = scope["query_string"].decode("latin-1")
        self.found: dict[bytes, bytes] = dict(scope["headers"])
        self.scope = scope
        self._receive = receive

    def text(self, name: bytes) -> str | None:
        """Return a header; names of files come in UTF-8."""
        value = self.found.get(name)
        return None if value is None else value.decode("utf-8", "replace")

    @property
    def content_type(self) -> str:
        return _checked_type(self.text(b"content-type"))

    @property
    def length(self) -> int | None:
        """What is announced of the body."""
        value = self.found.get(b"content-length")
        if value is None:
            return None if b"transfer-encoding" in self.found else 0
        return int(value)

    @property
    def lifetime_s(self) -> int | None:
        return lifetime_of(
            self.text(b"x-fal-object-lifecycle") or self.text(b"x-fal-object-lifecycle-preference")
        )

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises: _Left."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _Left
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return

    async def left(self) -> None:
        """Return when the caller has gone; only for requests whose body matters to nobody."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def json(self) -> dict[str, Any]:
        """Return a small JSON body. Raises: UsageError, LimitError."""
        whole = bytearray()
        async for chunk in self.chunks():
            whole += chunk
            if len(whole) > _JSON_BYTES:
                raise LimitError("The request's body is too large.", code="limit.body")
        try:
            found = json.loads(whole or b"{}")
        except (ValueError, RecursionError) as error:
            raise UsageError("The body is not JSON.", code="usage.invalid_request") from error
        if not isinstance(found, dict):
            raise UsageError("The body is not a JSON object.", code="usage.invalid_request")
        return found


class Storage:
    """The ASGI application for `/rest/storage/` and `/files/`."""

    def __init__(
        self,
        files: Files,
        auth: Auth,
        keys: SigningKeys,
        *,
        url: str,
        is_ours: Callable[[str], bool],
        is_live: Callable[[str], bool],
        touch: Callable[[], None],
    ) -> None:
        """is_ours: whether this backend answers for a host; is_live: whether a runner of this id still runs."""
        self._files = files
        self._auth = auth
        self._keys = keys
        self._url = url.rstrip("/")
        self._is_ours = is_ours
        self._is_live = is_live
        self._touch = touch

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        asked = _Asked(scope, receive)
        self._touch()
        try:
            answer = await self._route(asked, send)
        except _Left:
            return
        except FalError as error:
            detail = f"{error.message} {error.fix}" if error.fix else error.message
            answer = _Answer(status_of(error), {"detail": detail, "error_type": error.code})
        if answer is not None:
            await _send(send, answer)

    async def _route(self, asked: _Asked, send: Any) -> _Answer | None:
        match asked.method, asked.parts:
            case "POST", ["rest", "storage", *rest]:
                return await self._begin_by_rest(asked, rest)
            case "POST", ["files", "upload"]:
                return await self._upload(asked)
            case "POST", ["files", "upload", "multipart"]:
                return await self._begin(asked)
            case _, ["files", id, name, *rest]:
                return await self._of_file(asked, id, name, rest, send)
            case _:
                raise _nothing()

    async def _begin_by_rest(self, asked: _Asked, rest: list[str]) -> _Answer:
        match rest:
            case ["auth", "token"]:
                return await self._token(asked)
            case ["upload", "initiate"]:
                return await self._initiate(asked, is_multipart=False)
            case ["upload", "initiate-multipart"]:
                return await self._initiate(asked, is_multipart=True)
            case _:
                raise _nothing()

    async def _of_file(self, asked: _Asked, id: str, name: str, rest: list[str], send: Any) -> _Answer | None:
        match asked.method, rest:
            case (("GET" | "HEAD"), []):
                return await self._get(asked, id, name, send)
            case "PUT", []:
                return await self._put(asked, id, name)
            case "DELETE", []:
                return await self._delete(asked, id, name)
            case "PUT", ["multipart", upload, number] if _NUMBER.fullmatch(number):
                return await self._part(asked, id, name, upload, int(number))
            case "POST", ["multipart", upload, "complete"]:
                return await self._complete(asked, id, name, upload)
            case _:
                raise _nothing()

    # Uploads

    async def _token(self, asked: _Asked) -> _Answer:
        who = self._who(asked)
        await asked.json()
        expires = int(time.time()) + TOKEN_S
        return _Answer(
            200,
            {
                "token": sign_words(
                    self._keys, "upload", who.account.encode().hex(), who.key_id, str(expires)
                ),
                "token_type": "Bearer",
                "base_url": self._base(asked, who),
                "expires_at": datetime.fromtimestamp(expires, UTC).isoformat(),
            },
        )

    async def _upload(self, asked: _Asked) -> _Answer:
        who = self._who(asked)
        label = _label(asked.text(b"x-fal-file-name"), asked.content_type, asked.lifetime_s)
        row = await self._files.add(who.account, label, asked.chunks(), asked.length)
        return _Answer(200, {"access_url": self._base(asked, who) + _path(row)})

    async def _begin(self, asked: _Asked) -> _Answer:
        who = self._who(asked)
        label = _label(asked.text(b"x-fal-file-name"), asked.content_type, asked.lifetime_s)
        await asked.json()
        row = await self._files.begin(who.account, label, is_multipart=True)
        return _Answer(200, {"access_url": self._base(asked, who) + _path(row), "uploadId": row.upload})

    async def _initiate(self, asked: _Asked, *, is_multipart: bool) -> _Answer:
        who, body = self._who(asked), await asked.json()
        label = _label(body.get("file_name"), _checked_type(body.get("content_type")), asked.lifetime_s)
        row = await self._files.begin(who.account, label, is_multipart=is_multipart)
        base, path = self._base(asked, who), _path(row)
        limits = self._files.limits
        if is_multipart:
            # The row ends an upload that nobody goes on with; the address only has to last as long.
            expires = int(time.time() + max(TOKEN_S, limits.open_s))
            path += f"/multipart/{row.upload}"
            grant = Grant(_MULTIPART, path, expires, limits.file_bytes, "")
        else:
            expires = int(time.time()) + TOKEN_S
            grant = Grant("PUT", path, expires, limits.file_bytes, row.content_type)
        upload_url = f"{base}{path}?{sign_grant(self._keys, grant)}"
        return _Answer(200, {"upload_url": upload_url, "file_url": base + _path(row)})

    async def _put(self, asked: _Asked, id: str, name: str) -> _Answer:
        grant = self._grant(asked, "PUT", _address(id, name))
        if asked.content_type.lower() != grant.content_type.lower():
            raise AuthError(
                f"The address was signed for {grant.content_type}, not {asked.content_type}.",
                fix="Send that `Content-Type`.",
                code="auth.forbidden",
            )
        if asked.length is not None and asked.length > grant.max_size:
            raise LimitError("The file is larger than its address allows.", code="limit.file_size")
        row = await self._found(id, name)
        await self._files.fill(row, asked.chunks(), asked.length)
        return _Answer(200, {"file_url": self._base(asked, None) + _path(row)})

    async def _part(self, asked: _Asked, id: str, name: str, upload: str, number: int) -> _Answer:
        row = await self._opened(asked, id, name, upload)
        etag = await self._files.add_part(row, number, asked.chunks(), asked.length)
        quoted = f'"{etag}"'
        return _Answer(200, {"partNumber": number, "etag": quoted}, ((b"etag", quoted.encode()),))

    async def _complete(self, asked: _Asked, id: str, name: str, upload: str) -> _Answer:
        row = await self._opened(asked, id, name, upload)
        row = await self._files.complete(row, _parts(await asked.json()))
        url = self._base(asked, None) + _path(row)
        return _Answer(200, {"access_url": url, "file_url": url})

    async def _opened(self, asked: _Asked, id: str, name: str, upload: str) -> File:
        """Return the row of a multipart upload that the caller may go on with."""
        if "sig=" in asked.query:
            self._grant(asked, _MULTIPART, f"{_address(id, name)}/multipart/{upload}")
            row = await self._found(id, name)
        else:
            who = self._who(asked)
            row = await self._found(id, name)
            self._check_owner(row, who)
        if row.upload != upload:
            raise NotFoundError("There is no such upload.", code="file.not_found")
        return row

    # Reading and removing

    async def _get(self, asked: _Asked, id: str, name: str, send: Any) -> _Answer | None:
        row = await self._found(id, name)
        if row.state != FileState.READY:
            raise NotFoundError("There is no such file.", code="file.not_found")
        made = plan(row, asked.found)
        if asked.method == "HEAD" or not made.length:
            await _start(send, made.status, made.headers)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return None
        async with aclosing(self._files.read(row, made.start, made.length)) as blocks:
            # Read before the answer begins: a file that is gone is told by its status.
            first = await anext(blocks, b"")
            await _start(send, made.status, made.headers)
            await send({"type": "http.response.body", "body": first, "more_body": True})
            await self._send_blocks(asked, blocks, send)
        return None

    @staticmethod
    async def _send_blocks(asked: _Asked, blocks: AsyncIterator[bytes], send: Any) -> None:
        """Send the rest, unless the caller has left: nobody would tell us but the caller's own side."""
        leaving = asyncio.ensure_future(asked.left())
        try:
            async for block in blocks:
                if leaving.done():
                    return
                await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()

    async def _delete(self, asked: _Asked, id: str, name: str) -> _Answer:
        who = self._who(asked)
        row = await self._found(id, name)
        self._check_owner(row, who)
        await self._files.delete(row.id)
        return _Answer(204)

    async def _found(self, id: str, name: str) -> File:
        row = await self._files.find(id) if _ID.fullmatch(id) else None
        if row is None or row.name != name:
            raise NotFoundError("There is no such file.", code="file.not_found")
        return row

    # Who may

    def _who(self, asked: _Asked) -> _Who:
        """Return who uploads. Raises: AuthError."""
        header = asked.found.get(b"authorization")
        if header is None:
            raise AuthError("A key is needed.", fix="Send `Authorization: Key <id>:<secret>`.")
        scheme, _, value = header.decode("latin-1").partition(" ")
        if scheme.lower() == "bearer" and ":" not in value:
            return self._bearer(value.strip())
        principal = self._auth.principal(header)
        if principal is None or may(principal, Operation.UPLOAD, Target(principal.account)) is not Verdict.OK:
            raise AuthError("This key may not upload files.", code="auth.forbidden")
        return _Who(principal.account, key_id=principal.key_id)

    def _bearer(self, token: str) -> _Who:
        match read_words(self._keys, token):
            case ("upload", account, key_id, expires) if self._is_open(expires, key_id):
                return _Who(bytes.fromhex(account).decode(), key_id=key_id)
            case ("runner", runner_id, account) if self._is_live(runner_id):
                return _Who(bytes.fromhex(account).decode(), is_runner=True)
            case _:
                raise AuthError("The token is not valid here, or no longer.", code="auth.invalid")

    def _is_open(self, expires: str, key_id: str) -> bool:
        """Return whether an upload token is still good: it ends with the key that it was made with."""
        return time.time() < int(expires) and (key_id == "-" or self._auth.holder(key_id) is not None)

    def _grant(self, asked: _Asked, method: str, path: str) -> Grant:
        grant = read_grant(self._keys, method, path, asked.query, time.time())
        if grant is None:
            raise AuthError(
                "The address is not signed for this, or its time is over.",
                fix="Begin the upload again.",
                code="auth.forbidden",
            )
        return grant

    @staticmethod
    def _check_owner(row: File, who: _Who) -> None:
        if row.account != who.account:
            raise AuthError("This is another account's file.", code="auth.forbidden")

    def _base(self, asked: _Asked, who: _Who | None) -> str:
        """Return the address that the caller knows us by; a runner says which one its own caller used."""
        if who is not None and who.is_runner:
            host = asked.text(b"x-forwarded-host") or ""
            scheme = asked.text(b"x-forwarded-proto")
            is_socket = host == _SOCKET_HOST and scheme != "https"
            if self._is_ours(host) and not is_socket:
                return f"{'https' if scheme == 'https' else 'http'}://{host}"
            return self._url
        host = asked.text(b"host") or ""
        if not host or asked.scope.get("client") is None:
            return self._url
        prefix = str(asked.scope.get("root_path", "")).rstrip("/")
        return f"{asked.scope['scheme']}://{host}{prefix}"


def _nothing() -> NotFoundError:
    return NotFoundError("There is nothing at this address.", code="file.not_found")


def _address(id: str, name: str) -> str:
    return f"/files/{id}/{quote(name, safe='')}"


def _path(row: File) -> str:
    return _address(row.id, row.name)


def _checked_type(given: Any) -> str:
    if isinstance(given, str) and len(given) < 200 and _TYPE.fullmatch(given.strip()):
        return given.strip()
    return _BINARY


def _label(name: Any, content_type: str, lifetime_s: int | None) -> Label:
    if not isinstance(name, str) or not name.strip():
        kind = content_type.partition(";")[0].strip()
        name = uuid.uuid4().hex + (mimetypes.guess_extension(kind, strict=False) or ".bin")
    return Label(name, content_type, lifetime_s)


def _parts(body: dict[str, Any]) -> list[Part]:
    try:
        return [Part(int(part["partNumber"]), str(part["etag"])) for part in body["parts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            'The body is not `{"parts": [{"partNumber": 1, "etag": "…"}]}`.', code="usage.invalid_request"
        ) from error


async def _start(send: Any, status: int, headers: Headers) -> None:
    request_id = (b"x-fal-request-id", str(uuid.uuid4()).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, request_id]})


async def _send(send: Any, answer: _Answer) -> None:
    body = b"" if answer.status == 204 else json.dumps(answer.body).encode()
    headers = list(answer.headers)
    if answer.status != 204:
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await _start(send, answer.status, headers)
    await send({"type": "http.response.body", "body": body, "more_body": False})
