"""A realtime session: inputs as they come, outputs as they are made, until nobody sends any more.

Rules: outputs go out in the order of their inputs; an input is checked when its turn comes, so that what came before
it is answered first. Binary frames carry messages; text frames carry errors: `{"type": "x-fal-error", "error",
"reason"}`. A text frame from the caller is answered by such an error and the session goes on. A caller who leaves
cancels the work, or ends its stream of inputs. Source: fal SDK, `fal.realtime`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, TypeAdapter
from starlette.concurrency import iterate_in_threadpool
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from fal_notebook.app import Realtime
from fal_notebook.failures import print_traceback, to_json

__all__ = ["ON_DRAIN", "Form", "Mode", "Session"]

ON_DRAIN = "fal_nb.on_drain"
"""Key of the scope under which a server lets a session ask to be told that it should come to its end."""

_MOST_WAITING = 256
_NORMAL, _RESTART = 1000, 1012
_END = object()


class Mode(StrEnum):
    """Who streams."""

    UNARY = "unary"
    SERVER_STREAMING = "server_streaming"
    CLIENT_STREAMING = "client_streaming"
    BIDI = "bidi"


@dataclass(frozen=True)
class Form:
    """What a session's messages are."""

    mode: Mode
    input: Any
    """Type of each input; None: not checked."""
    output: Any


class Session:
    """One connection of a realtime endpoint."""

    def __init__(self, websocket: WebSocket, call: Callable[..., Any], options: Realtime, form: Form) -> None:
        self._websocket = websocket
        self._call = call
        self._options = options
        self._mode = form.mode
        self._check = TypeAdapter(form.input).validate_python if form.input is not None else None
        self._limit = _fewest(options.buffering, websocket.query_params.get("max_buffering"))
        self._waiting: deque[bytes] = deque(maxlen=self._limit if self._mode is Mode.UNARY else None)
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._is_gone = False
        self._is_draining = False
        self._worker: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Converse until the inputs end, the caller leaves, the work fails or the runner drains."""
        ask = self._websocket.scope.get(ON_DRAIN)
        if ask is not None:
            ask(self._drain)
        await self._websocket.accept()
        loop = asyncio.get_running_loop()
        self._worker = loop.create_task(self._work())
        reader = loop.create_task(self._read())
        try:
            await asyncio.wait({self._worker})
        finally:
            reader.cancel()
            self._worker.cancel()
            await asyncio.gather(reader, self._worker, return_exceptions=True)
        await self._say_goodbye(self._worker)

    def _drain(self) -> None:
        self._is_draining = True
        self._changed.set()

    async def _say_goodbye(self, worker: asyncio.Task[None]) -> None:
        if self._is_gone or worker.cancelled():
            return
        error = worker.exception()
        if isinstance(error, WebSocketDisconnect):
            return
        try:
            if error is not None:
                print_traceback(error)
                await self._complain("INTERNAL_ERROR", str(error))
            elif not self._is_draining:
                await self._complain("TIMEOUT", "no inputs, reconnect when needed!")
            await self._websocket.close(_RESTART if self._is_draining and error is None else _NORMAL)
        except (WebSocketDisconnect, RuntimeError):
            return  # the caller left first

    async def _complain(self, error: str, reason: str) -> None:
        text = json.dumps({"type": "x-fal-error", "error": error, "reason": reason}, separators=(",", ":"))
        await self._websocket.send_text(text)

    # reading

    async def _read(self) -> None:
        """Take frames until the caller leaves; while too many wait, the connection is not read."""
        while True:
            while self._waiting.maxlen is None and len(self._waiting) >= _MOST_WAITING:
                self._room.clear()
                await self._room.wait()
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                self._leave()
                return
            data = message.get("bytes")
            if data is None:
                await self._refuse_text(message.get("text") or "")
            elif not self._is_draining:
                self._waiting.append(data)
                self._changed.set()

    def _leave(self) -> None:
        self._is_gone = True
        self._changed.set()
        if self._worker is not None and self._mode in (Mode.UNARY, Mode.SERVER_STREAMING):
            self._worker.cancel()

    async def _refuse_text(self, text: str) -> None:
        try:
            message = json.loads(text)
        except ValueError:
            message = None
        if isinstance(message, Mapping) and message.get("type") == "x-fal-message":
            return
        reason = f"messages are binary frames ({self._options.content_type}), this one was text"
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._complain("INTERNAL_ERROR", reason)

    # inputs

    async def _next(self, timeout_s: float | None) -> Any:
        """Return the next input, checked; `_END` after a time without one, or when no more will come."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._waiting:
                    if self._is_gone or self._is_draining:
                        return _END
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return _END
        return self._take()

    def _take(self) -> Any:
        data = self._waiting.popleft()
        self._room.set()
        message = (self._options.decode_message or _unpack)(data)
        return message if self._check is None else self._check(message)

    async def _inputs(self) -> AsyncGenerator[Any, None]:
        while (item := await self._next(self._options.session_timeout)) is not _END:
            yield item

    def _fill(self, first: Any) -> list[Any]:
        """Return a batch: what waits already and may go with the first."""
        batch = [first]
        can_batch = getattr(first, "can_batch", None)
        while self._waiting and len(batch) < self._options.max_batch_size:
            data = self._waiting[0]
            try:
                item = self._take()
            except Exception:  # noqa: BLE001 (raised again at its own turn, when those before it are answered)
                self._waiting.appendleft(data)
                break
            if can_batch is not None and not can_batch(item, len(batch)):
                self._waiting.appendleft(data)
                break
            batch.append(item)
        return batch

    # work

    async def _work(self) -> None:
        match self._mode:
            case Mode.UNARY:
                await self._answer_each()
            case Mode.SERVER_STREAMING:
                first = await self._next(self._options.session_timeout)
                if first is not _END:
                    await self._send_all(await _settle(self._call(first)))
            case Mode.CLIENT_STREAMING:
                async with contextlib.aclosing(self._inputs()) as inputs:
                    await self._send(await self._call(inputs))
            case Mode.BIDI:
                async with contextlib.aclosing(self._inputs()) as inputs:
                    await self._send_all(await _settle(self._call(inputs)))

    async def _answer_each(self) -> None:
        while (first := await self._next(self._options.session_timeout)) is not _END:
            await self._send(await _settle(self._call(*self._fill(first))))

    async def _send_all(self, outputs: Any) -> None:
        if hasattr(outputs, "__aiter__"):
            stream = outputs
        elif hasattr(outputs, "__iter__") and not isinstance(outputs, Mapping | BaseModel):
            stream = iterate_in_threadpool(outputs)
        else:
            raise TypeError(f"Expected an iterator of outputs, got {type(outputs)}")
        try:
            async for output in stream:
                await self._send(output)
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    async def _send(self, output: Any) -> None:
        if isinstance(output, BaseModel):
            output = output.model_dump()
        if not isinstance(output, dict):
            raise TypeError(f"Expected a dict or pydantic model as output, got {type(output)}")
        if self._is_gone or self._websocket.client_state is WebSocketState.DISCONNECTED:
            raise WebSocketDisconnect
        message = (self._options.encode_message or _pack)(output)
        if isinstance(message, str):
            await self._websocket.send_text(message)
        else:
            await self._websocket.send_bytes(message)


async def _settle(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def _fewest(buffering: int | None, asked: str | None) -> int | None:
    """Return how many inputs may wait: the endpoint's limit or the caller's `max_buffering`, the lower."""
    limits = [buffering] if buffering else []
    if asked and asked.isdecimal() and 1 <= int(asked) <= 60:
        limits.append(int(asked))
    return min(limits, default=None)


def _unpack(data: bytes) -> Any:
    return importlib.import_module("msgpack").unpackb(data, raw=False)


def _pack(message: Any) -> bytes:
    packed: bytes = importlib.import_module("msgpack").packb(message, use_bin_type=True, default=_plain)
    return packed


def _plain(value: Any) -> Any:
    """Give msgpack what it has no form for: numpy's numbers, dates."""
    return to_json(value, "realtime")
