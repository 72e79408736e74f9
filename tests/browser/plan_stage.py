"""Plans in every state that their card draws, with the scripts that answer for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.browser.rollout_stage import DEPLOYMENTS, NEW, NEWER, OLD, UPLOAD, finished, rolling
from tests.browser.stage import APP, card

PLAN = "p-00112233445566aa"
PLANS = f"api/v1/plans/{PLAN}"
DIFF = """--- production
+++ after deploy
@@ -6,5 +6,6 @@
     def setup(self):
-        self.model = model
+        self.model = model.eval()
+        self.names = names
"""
NAMES = (
    *("machine_types", "keep_alive", "max_concurrency", "min_concurrency", "concurrency_buffer"),
    *("concurrency_buffer_perc", "scaling_delay", "max_multiplexing", "request_timeout"),
    *("request_start_timeout", "startup_timeout", "valid_regions"),
)


def setting(
    name: str, now: str, after: str, source: str = "code", hidden: str | None = None
) -> dict[str, Any]:
    title = name.replace("_", " ").title()
    return {"name": name, "title": title, "now": now, "after": after, "source": source, "not_applied": hidden}


def settings(**rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [rows.get(name) or setting(name, "5", "5", "inherited") for name in NAMES]


CHANGED = settings(
    machine_types=setting("machine_types", "S", "M"),
    max_multiplexing=setting("max_multiplexing", "1", "64"),
    keep_alive=setting("keep_alive", "60 s", "60 s", "inherited", "10 s"),
    max_concurrency=setting("max_concurrency", "5", "5", "inherited", "2"),
)
FIRST = [
    setting(name, "n/a", after, "code" if name in ("machine_types", "min_concurrency") else "default")
    for name, after in zip(NAMES, ("XS", "10 s", "2", "1", *["0"] * 8), strict=True)
]


def capture(name: str, state: str, size: int, before: int | None, cell: int | None) -> dict[str, Any]:
    where = None if cell is None else {"execution_count": cell, "cell_id": "c"}
    return {"name": name, "state": state, "size_bytes": size, "size_before": before, "cell": where}


def plan(**changes: Any) -> dict[str, Any]:
    made = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    fields: dict[str, Any] = {
        "plan_id": PLAN,
        "expires_at": "2999-01-01T00:00:00Z",
        "app_name": "digits",
        "endpoint_id": "ada/digits",
        "environment": "main",
        "is_required": False,
        "changed": True,
        "production": {"revision": OLD, "author": "ada", "created_at": made, "auth": "private"},
        "source": {
            "class_name": "Digits",
            "notebook": "digits.ipynb",
            "cell": {"execution_count": 7, "cell_id": "c"},
            "added": 12,
            "removed": 3,
            "diff": DIFF,
        },
        "auth": "private",
        "strategy": "rolling",
        "detach": False,
        "reset_scale": False,
        "message": None,
        "image": {
            "hash": "4f1c9a2e00",
            "is_cached": True,
            "size_bytes": 227_000_000,
            "layers": [],
            "uses_cache": True,
        },
        "setup_s": 0.2,
        "setup_starts": 3,
        "captures": [
            capture("model", "changed", 11_200_000, 9_500_000, 4),
            capture("classes", "same", 200, 200, None),
        ],
        "settings": CHANGED,
        "endpoints": [{"path": "/", "method": "predict"}],
        "idle_runners": 0,
        "idle_machine": "S",
        "keep_alive_s": 60,
        "idle_price_per_hour": 0.0,
        "lacking": None,
    }
    return fields | changes


def first() -> dict[str, Any]:
    return plan(
        production=None,
        source={"class_name": "Digits", "notebook": None, "cell": None, "added": 0, "removed": 0, "diff": ""},
        image={
            "hash": "77aa0b1c00",
            "is_cached": False,
            "size_bytes": None,
            "layers": [["torch==2.6.0"], ["timm"]],
            "uses_cache": True,
        },
        setup_s=None,
        captures=[],
        settings=FIRST,
        idle_runners=1,
        idle_machine="XS",
        lacking="No node has a machine of type GPU-H100.",
    )


def refusal(code: str, message: str, **details: Any) -> dict[str, Any]:
    error = {"code": code, "message": message, "fix": "Check again.", "where": None, "traceback": None}
    return {"refuses": error | {"details": details}}


def scene(shown: dict[str, Any] | None = None, **script: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (the script that answers, the props of the card)."""
    kept = shown or plan()
    data = {
        "kind": "plan",
        "app": "digits",
        "title": "digits",
        "plan": kept,
        "command": "%fal deploy Digits --check --yes",
        "checked_s": 0.21,
        "upload": UPLOAD,
        "goes_on": False,
    }
    json = {PLANS: kept} | script.pop("json", {})
    return {"json": json} | script, card(**data)


def begun(name: str = "deployed") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a plan of a notebook that was confirmed long ago: it does not wait, its deployment is known."""
    script, props = scene()
    if name == "rolling":
        under, _ = rolling()
    else:
        under = {"json": {DEPLOYMENTS: finished(), APP: app(NEW)}}
    del script["json"][PLANS]
    json = {f"{PLANS}/deployment": under["json"][DEPLOYMENTS], **script["json"], **under["json"]}
    return under | {"json": json}, props


def app(revision: str) -> dict[str, Any]:
    script, _ = rolling()
    found: dict[str, Any] = script["json"][APP]
    return found | {"revision": revision}


def over() -> tuple[dict[str, Any], dict[str, Any]]:
    script, props = scene()
    del script["json"][PLANS]
    return script, props


def goes_on() -> tuple[dict[str, Any], dict[str, Any]]:
    script, props = scene()
    props["data"] |= {"goes_on": True}
    return script, props


def stale() -> dict[str, Any]:
    at = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    now = {"revision": NEWER, "author": "lab-ci", "at": at}
    return refusal("deploy.plan_stale", 'The plan for "digits" is out of date.', **now)


SCALED = refusal("deploy.plan_stale", 'The plan for "digits" is out of date.', revision=OLD)
REFUSED = refusal("bundle.missing", "2 part(s) of the bundle were not uploaded.")


def scenes() -> dict[str, tuple[str, str | None, dict[str, Any], dict[str, Any]]]:
    """Return {state: (word, button to press first, script, props)}."""
    made: dict[str, tuple[str, str | None, tuple[dict[str, Any], dict[str, Any]]]] = {
        "waiting": ("Waiting for you", None, scene()),
        "first": ("Waiting for you", None, scene(first())),
        "unchanged": ("Already deployed", None, scene(plan(changed=False))),
        "stale": ("Plan is out of date", "Confirm", scene(**stale())),
        "scaled": ("Plan is out of date", "Confirm", scene(**SCALED)),
        "failed": ("Not deployed", "Confirm", scene(**REFUSED)),
        "dropped": ("Cancelled", "Cancel", scene()),
        "over": ("No longer waiting", None, over()),
        "begun": ("Confirmed", None, begun()),
        "begun-rolling": ("Confirmed", None, begun("rolling")),
        "goes-on": ("Confirmed", None, goes_on()),
        "offline": ("Not connected", None, scene(offline=True)),
        "saved": ("Saved view", None, scene(unknown=True)),
    }
    return {name: (word, press, *parts) for name, (word, press, parts) in made.items()}
