"""Programs beside runners over a websocket, `GET /api/v1/runners/{id}/exec`.

Rules: leave is asked for before the handshake is answered. The caller's first message is JSON, `{"command", "terminal",
"rows", "columns", "term"}`; then bytes are input, and JSON is `{"type": "end"}` (of the input), `"resize"` or
`"interrupt"`. Answers: bytes, the first of which is 1 for stdout and 2 for stderr, and `{"type": "started"}`,
`{"type": "ended", "code", "signal", "why"}`, `{"type": "refused", "error"}`. Neither end is read faster than the
other one takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from websockets.frames import CloseCode

from fal_backend.api import problems
from fal_backend.api.auth import Auth
from fal_backend.api.caller import Caller
from fal_backend.api.conversation import Conversation, shake_hands
from fal_backend.api.tunnel import Upgraded
from fal_backend.domain.access import Principal, Target, Verdict, may, operation_of
from fal_backend.domain.program import (
    Program,
    ProgramEnded,
    ProgramNews,
    ProgramOutput,
    ProgramRefused,
    ProgramStarted,
    ProgramWish,
)
from fal_backend.services.accounts import Act
from fal_backend.services.programs import Programs, refused
from fal_notebook.errors import AuthError, BackendError, FalError, NotFoundError
from fal_notebook.runtime.hostproto import ProtocolError

__all__ = ["ProgramDoor"]

_PREFIX = "/api/v1"
_PATH = re.compile(r"/runners/([A-Za-z0-9_-]{1,64})/exec")
_PIECE = 64 * 1024
_FIRST_S = 15.0
"""How long a caller may take to say what is to be run."""


class _Wish(BaseModel):
    command: list[str] = Field(default_factory=list, max_length=1000)
    terminal: bool = False
    rows: int = Field(24, ge=1, le=4096)
    columns: int = Field(80, ge=1, le=4096)
    term: str = Field("dumb", max_length=64, pattern=r"[A-Za-z0-9._+-]+")


class ProgramDoor:
    """Serves the websocket; used from one event loop."""

    def __init__(self, auth: Auth, programs: Programs) -> None:
        self._auth = auth
        self._programs = programs

    def begin(self, caller: Caller) -> None:
        """Serve a websocket, or refuse it with a plain answer."""
        caller.connection.spawn(self._serve(caller))

    async def _serve(self, caller: Caller) -> None:
        path = caller.target.decode("latin-1").partition("?")[0].removeprefix(_PREFIX)
        try:
            who = self._principal(caller, path)
            matched = _PATH.fullmatch(path)
            if matched is None:
                raise NotFoundError("No websocket is served here.")
            await self._programs.check(who.account, matched[1])
        except FalError as error:
            caller.answer(problems.status_of(error), b"", json.dumps({"error": error.to_dict()}).encode())
            return
        upgraded = caller.upgraded
        if upgraded is None or caller.disconnected:
            return
        wrong = shake_hands(caller, path)
        if wrong is not None:
            told = BackendError(wrong[1], code="usage.invalid_request").to_dict()
            caller.answer(wrong[0], b"", json.dumps({"error": told}).encode())
            return
        act = Act(who, caller.connection.address)
        await _Conversation(caller, upgraded, self._programs, act, matched[1]).run()

    def _principal(self, caller: Caller, path: str) -> Principal:
        who = self._auth.principal(caller.head.found.get(b"authorization"))
        if who is None:
            raise AuthError(
                "A key is needed.", fix="Send `Authorization: Key <id>:<secret>`.", code="auth.required"
            )
        team = caller.head.found.get(b"x-fal-team")
        if team:
            who = self._auth.acting(who, team.decode("latin-1"))
        if may(who, operation_of("GET", path), Target(who.account)) is not Verdict.OK:
            raise AuthError(
                f"A key of scope {who.scope} may not run programs beside runners.",
                fix="Use an ADMIN key.",
                code="auth.forbidden",
            )
        return who


class _Conversation(Conversation):
    """One websocket and its program."""

    largest = 1024 * 1024
    most_waiting = 8

    def __init__(
        self, caller: Caller, upgraded: Upgraded, programs: Programs, act: Act, runner_id: str
    ) -> None:
        super().__init__(caller, upgraded)
        self._programs = programs
        self._act = act
        self._runner_id = runner_id
        self._room = asyncio.Event()
        self._room.set()
        self._left = asyncio.Event()
        self._close_code = CloseCode.NORMAL_CLOSURE

    async def run(self) -> None:
        """Serve until the program has ended or the caller has left."""
        self.listen()
        work = asyncio.ensure_future(self._work())
        left = asyncio.ensure_future(self._left.wait())
        try:
            await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, left):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            self.hang_up(self._close_code)

    async def _work(self) -> None:
        try:
            async with asyncio.timeout(_FIRST_S):
                is_text, data = await self._next()
            wish = _Wish.model_validate_json(data if is_text else b"")
        except (TimeoutError, ValidationError):
            self._close_code = CloseCode.POLICY_VIOLATION
            return
        try:
            program = await self._programs.open(
                self._act,
                self._runner_id,
                ProgramWish(tuple(wish.command), wish.terminal, wish.rows, wish.columns, wish.term),
            )
        except OSError as error:
            self._refuse(refused("unreachable", str(error)))
            return
        feeding: asyncio.Task[None] | None = None
        try:
            async for one in program.news():
                if isinstance(one, ProgramStarted):
                    feeding = asyncio.create_task(self._feed(program))
                self._tell(one)
                await self._room.wait()
        except (OSError, ProtocolError) as error:
            self._refuse(refused("lost", str(error)))
        finally:
            program.close()
            if feeding is not None:
                feeding.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await feeding

    async def _feed(self, program: Program) -> None:
        """Give the program what comes, until its host is gone."""
        with contextlib.suppress(OSError):
            while True:
                is_text, data = await self._next()
                if is_text:
                    await self._order(program, data)
                for start in range(0, 0 if is_text else len(data), _PIECE):
                    await program.give(data[start : start + _PIECE])

    async def _order(self, program: Program, text: bytes) -> None:
        try:
            message = json.loads(text)
            match message["type"]:
                case "end":
                    await program.give(b"", is_last=True)
                case "resize":
                    program.resize(int(message["rows"]), int(message["columns"]))
                case "interrupt":
                    program.interrupt()
                case _:
                    raise ValueError("an unknown type")
        except (ValueError, KeyError, TypeError):
            self._close_code = CloseCode.INVALID_DATA
            self._left.set()

    async def _next(self) -> tuple[bool, bytes]:
        while not self.waiting:
            self.wake.clear()
            await self.wake.wait()
        found = self.waiting.popleft()
        self.upgraded.go_on()
        return found

    # What is said

    def _tell(self, one: ProgramNews) -> None:
        match one:
            case ProgramOutput():
                self.send((b"\x02" if one.is_error else b"\x01") + one.data)
            case ProgramStarted():
                self._say({"type": "started"})
            case ProgramEnded():
                self._say({"type": "ended", "code": one.code, "signal": one.signal, "why": one.why})
            case ProgramRefused():
                self._refuse(refused(one.code, one.reason))

    def _refuse(self, error: FalError) -> None:
        self._say({"type": "refused", "error": error.to_dict()})

    def _say(self, message: dict[str, Any]) -> None:
        self.send(json.dumps(message).encode(), is_text=True)

    # Told by the connection

    def leave(self) -> None:
        """The caller has left, or closed: the program is killed."""
        self._left.set()

    def make_room(self, *, has_room: bool) -> None:
        """The caller reads too slowly, or has caught up."""
        self._room.set() if has_room else self._room.clear()

    def shut_down(self) -> None:
        """The backend is ending: the program is killed."""
        self._close_code = CloseCode.SERVICE_RESTART
        self._left.set()
