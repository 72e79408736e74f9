"""The wire between a backend and a runner host: frames, versions, and the names of the messages.

Standard library only; imported by both sides.
Rules: a frame is a u32 (big endian) length and one UTF-8 JSON object of at most 1 MiB with `t` (type), `n`
(number, counted in each direction) and, in an answer, `re` (the `n` it answers). The first message each way
carries `proto: [min, max]` and the highest common version is used. An unknown `t` is answered with `error`,
unknown fields are ignored. Bundles and bodies never travel here: they are files.

    backend -> host   hello adopt start stop kill warm drop logs.read logs.stop exec exec.input exec.resize exec.interrupt
                      ack stats retire
    host -> backend   welcome ok error started refused state exited zygote log exec.output exec.ended stats
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

__all__ = [
    "LENGTH",
    "MAX_FRAME",
    "PROTO",
    "Decoder",
    "ProtocolError",
    "encode_frame",
    "pick_version",
]

PROTO = (1, 1)
"""Oldest and newest version spoken."""
MAX_FRAME = 1 << 20
LENGTH = struct.Struct(">I")


class ProtocolError(Exception):
    """The peer sent something that is no frame, or speaks no version that we speak."""


def encode_frame(message: dict[str, Any]) -> bytes:
    """Return the message as one frame.

    Raises: ProtocolError when it is larger than `MAX_FRAME`.
    """
    # ASCII is not forced: a traceback in another script would grow six-fold.
    # Lone surrogates (text read from broken bytes) cannot be UTF-8, so they become "?".
    body = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    if len(body) > MAX_FRAME:
        raise ProtocolError(f"{message.get('t')} has {len(body)} bytes; a frame holds at most {MAX_FRAME}")
    return LENGTH.pack(len(body)) + body


class Decoder:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Add bytes and return the messages that are now complete.

        Raises: ProtocolError; the stream is useless then.
        """
        self._buffer += data
        messages: list[dict[str, Any]] = []
        while len(self._buffer) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._buffer)
            if size > MAX_FRAME:
                raise ProtocolError(f"a frame of {size} bytes was announced; at most {MAX_FRAME} are allowed")
            end = LENGTH.size + size
            if len(self._buffer) < end:
                break
            messages.append(_parse(bytes(self._buffer[LENGTH.size : end])))
            del self._buffer[:end]
        return messages


def _parse(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except ValueError as error:
        raise ProtocolError(f"a frame holds no JSON: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("t"), str):
        raise ProtocolError("a frame holds no JSON object with a type `t`")
    return message


def pick_version(theirs: Sequence[int] | None, ours: tuple[int, int] = PROTO) -> int:
    """Return the highest version that both speak; `theirs` is the peer's `proto`.

    Raises: ProtocolError that names both ranges.
    """
    try:
        low, high = theirs or ()
        low, high = int(low), int(high)
    except (TypeError, ValueError):
        raise ProtocolError("the peer did not say which versions of the host protocol it speaks") from None
    common = min(high, ours[1])
    if common < max(low, ours[0]):
        raise ProtocolError(
            f"the peer speaks host protocol {low} to {high}, this side {ours[0]} to {ours[1]}; "
            "run the same release of fal-notebook on both"
        )
    return common
