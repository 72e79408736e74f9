"""Deployments in every state that their card draws, with the scripts that answer for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.browser.stage import APP, FAILED, card, detail

OLD = "4f1c9a2e-7701-4d52-9c1c-8c0b5e9f1a3d"
NEW = "9b07d3c1-12aa-4f0e-8d3b-52d1c47e6f10"
NEWER = "e07f55aa-93b2-4b1c-a7f4-0d5c9d3e8b21"
DEPLOYMENT = "d-00112233445566"
DEPLOYMENTS = "api/v1/deployments/"
UPLOAD = {"parts": 3, "new_parts": 1, "new_bytes": 11_200_000, "duration_s": 0.7}
LOG = ["reading 70000 digits", "loading 200 trees …"]


def moment(base: datetime, offset_s: float) -> str:
    return (base + timedelta(seconds=offset_s)).isoformat()


def steps(base: datetime, *marks: tuple[str, float | None, float | None]) -> list[dict[str, Any]]:
    """Return the phases: (state, begin, duration) each, in seconds after the beginning."""
    names = ("build", "start", "setup", "ready")
    return [
        {
            "name": name,
            "state": state,
            "began_at": None if begin is None else moment(base, begin),
            "duration_s": took,
        }
        for name, (state, begin, took) in zip(names, marks, strict=True)
    ]


def course(base: datetime, state: str, phases: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "deployment_id": DEPLOYMENT,
        "app_name": "digits",
        "revision": NEW,
        "changed": True,
        "state": state,
        "kind": "deploy",
        "strategy": "rolling",
        "detach": False,
        "phases": phases,
        "previous": OLD,
        "runner_id": None,
        "calls": None,
        "failed_calls": None,
        "created_at": moment(base, 0),
        "switched_at": None,
        "ended_at": None,
        "error": None,
        "image": {"hash": "4f1c9a2e00", "cached": True, "size_bytes": 1},
        "event": 1,
    }
    return fields | changes


def runner(id: str, revision: str, state: str, base: datetime, **changes: Any) -> dict[str, Any]:
    fields = {
        "runner_id": id,
        "revision": revision,
        "state": state,
        "machine_type": "S",
        "node": "lab-ws-01",
        "in_flight_requests": 0,
        "started_at": moment(base, 0.1),
        "ended_at": None,
        "reason": None,
        "error": None,
    }
    return fields | changes


NEXT = ("next", None, None)
CACHED = ("cached", 0.0, 0.0)
MADE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RAN = (CACHED, ("done", 0.0, 0.5), ("done", 0.5, 3.6), ("done", 4.1, 0.2))


def scene(
    shown: dict[str, Any],
    *,
    revision: str | None,
    runners: list[dict[str, Any]] | None = None,
    log: list[str] | None = None,
    loads: dict[str, int] | None = None,
    output: dict[str, Any] | None = None,
    app: dict[str, Any] | None = None,
    **script: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (the script that answers, the props of the card)."""
    known = detail(
        alias="digits",
        endpoint_id="ada/digits",
        ephemeral=False,
        auth_mode="private",
        revision=revision,
        runners=runners or [],
        deployment=shown,
        split_revision=None,
    )
    known["urls"] = {"run": "http://127.0.0.1:8780/run/ada/digits", "playground": "", "queue": ""}
    answers: dict[str, Any] = {DEPLOYMENTS: shown, APP: known | (app or {})}
    if revision is None:
        del answers[APP]
    data = {
        "kind": "deploy",
        "app": "digits",
        "title": "digits",
        "rollout": {k: v for k, v in shown.items() if k not in ("error", "image", "event")},
        "upload": UPLOAD,
        "is_waiting": False,
        "saved_at": "2026-01-02T03:05:00Z",
    } | (output or {})
    return {"json": answers, "log": log or LOG, "loads": loads or {}} | script, card(**data)


def rolling() -> tuple[dict[str, Any], dict[str, Any]]:
    base = datetime.now(UTC) - timedelta(seconds=3.9)
    shown = course(base, "verifying", steps(base, CACHED, ("done", 0.0, 0.5), ("now", 0.5, None), NEXT))
    return scene(
        shown,
        revision=OLD,
        runners=[
            runner("r-7b02aa", NEW, "SETUP", base, machine_type="M"),
            runner("r-41c8bb", OLD, "IDLE", base),
        ],
        loads={"r-41c8bb": 3},
        output={"is_waiting": True},
    )


def first() -> tuple[dict[str, Any], dict[str, Any]]:
    base = datetime.now(UTC) - timedelta(seconds=1.4)
    shown = course(base, "verifying", steps(base, CACHED, ("now", 0.0, None), NEXT, NEXT), previous=None)
    return scene(shown, revision="", runners=[runner("r-7b02aa", NEW, "PENDING", base)])


def left() -> tuple[dict[str, Any], dict[str, Any]]:
    script, props = rolling()
    props["data"] |= {"is_waiting": False, "is_left": True}
    return script, props


def finished(**changes: Any) -> dict[str, Any]:
    at = {"switched_at": moment(MADE, 4.31), "ended_at": moment(MADE, 6.2)}
    counted = {"calls": 140, "failed_calls": 0, "runner_id": "r-7b02aa"}
    return course(MADE, "done", steps(MADE, *RAN), **(at | counted | changes))


def draining() -> tuple[dict[str, Any], dict[str, Any]]:
    base = datetime.now(UTC) - timedelta(seconds=5.8)
    shown = course(base, "draining", steps(base, *RAN), switched_at=moment(base, 4.31), runner_id="r-7b02aa")
    rows = [runner("r-7b02aa", NEW, "IDLE", base), runner("r-41c8bb", OLD, "DRAINING", base)]
    return scene(shown, revision=NEW, runners=rows, loads={"r-7b02aa": 2, "r-41c8bb": 1})


STOPPED = steps(MADE, ("done", 0.0, 1.9), ("done", 1.9, 0.5), ("failed", 2.4, 0.8), NEXT)
ABORTED = course(
    MADE, "aborted", STOPPED, ended_at=moment(MADE, 3.2), error=FAILED | {"details": {"runner_id": "r-7b02aa"}}, calls=12, failed_calls=0
)  # fmt: skip
CANCELLED = course(
    MADE, "cancelled", steps(MADE, CACHED, ("done", 0.0, 0.5), ("now", 0.5, None), NEXT), ended_at=moment(MADE, 3.1)
)  # fmt: skip
RECREATED = course(
    MADE, "done", steps(MADE, CACHED, NEXT, NEXT, NEXT), strategy="recreate", switched_at=moment(MADE, 0.02), ended_at=moment(MADE, 1.2)
)  # fmt: skip


def scenes() -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    """Return {state: (word, script, props)}; those under way began a moment ago."""
    made = {
        "rolling": ("Setting up", rolling()),
        "first": ("Starting", first()),
        "left": ("Setting up", left()),
        "draining": ("Deployed", draining()),
        "deployed": ("Deployed", scene(finished(), revision=NEW)),
        "failed-calls": ("Deployed", scene(finished(failed_calls=2), revision=NEW)),
        "rolled-back": ("Rolled back", scene(finished(kind="set_rev", calls=None), revision=NEW)),
        "recreated": ("Deployed", scene(RECREATED, revision=NEW)),
        "replaced": ("Replaced", scene(finished(), revision=NEWER)),
        "aborted": ("Rollout aborted", scene(ABORTED, revision=OLD)),
        "aborted-first": ("Rollout aborted", scene(ABORTED | {"previous": None}, revision=None, gone=True)),
        "cancelled": ("Rollout aborted", scene(CANCELLED, revision=OLD)),
        "unchanged": ("Already deployed", scene(finished(changed=False), revision=NEW)),
        "saved": ("Saved view", scene(finished(), revision=NEW, unknown=True)),
        "offline": ("Not connected", scene(finished(), revision=NEW, offline=True)),
    }
    return {name: (word, *parts) for name, (word, parts) in made.items()}
