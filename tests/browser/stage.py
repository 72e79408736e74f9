"""The stage for surfaces: a page that holds the bundle alone, scripted answers, and the data of every state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / ".artifacts" / "browser"

BUNDLE = ROOT / "fal_notebook" / "static" / "fal-ui.js"
VALUES = ROOT / "labextension" / "src" / "page" / "values.css"

SHELL = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Stage</title><style>%s body{padding:12px} .place{margin-bottom:16px}</style></head>
<body><script type="module">
import * as ui from "/fal-ui.js";
const never = () => new Promise(() => undefined);
function transport(key, script) {
  return {
    key,
    async json(path, init) {
      if (script.gone && path.includes("/apps/")) {
        throw new ui.ApiError(404, {code: "http.404", message: "There is no app.", fix: null, where: null, traceback: null, details: {}});
      }
      if (init?.method) {
        window.acts = [...(window.acts ?? []), {path, method: init.method, body: init.body}];
      }
      if (script.refuses && init?.method === "POST") throw new ui.ApiError(409, script.refuses);
      const found = Object.entries(script.json ?? {}).find(([start]) => path.startsWith(start));
      if (!found && path.startsWith("api/v1/plans/")) {
        throw new ui.ApiError(404, {code: "deploy.plan_not_found", message: "It waits no more.", fix: null, where: null, traceback: null, details: {}});
      }
      if (!found) throw Object.assign(new Error("offline"), {});
      return found[1];
    },
    async call(path, init) {
      const answer = script.call;
      window.calls = [...(window.calls ?? []), {path, body: init.body}];
      return new Response(answer.body, {status: answer.status, headers: answer.headers});
    },
    async *events(path) {
      if (script.offline) throw new Error("offline");
      yield "open";
      const line = (text, isBuild) => ({data: JSON.stringify({offset: 1, at: "2026-01-02T03:04:05Z", stream: isBuild ? "build" : "stdout", text}), id: null, event: null});
      for (const text of (path.includes("/log") && script.log) || []) yield line(text, path.includes("images"));
      const topics = path.startsWith("api/v1/watch") ? new URLSearchParams(path.split("?")[1]).getAll("on") : [];
      for (const [number, topic] of topics.entries()) {
        yield {event: "of", data: String(number), id: null};
        if (topic.startsWith("loads/")) yield {data: JSON.stringify(script.loads ?? {}), id: null, event: null};
        else for (const text of script.log ?? []) yield line(text, topic.startsWith("image/"));
      }
      await never();
    },
    start: never,
  };
}
let number = 0;
window.show = (surface, script, props) => {
  const place = document.createElement("div");
  place.className = "place";
  if (surface === "mountPanel") { place.style.height = "420px"; place.style.width = "320px"; }
  document.body.append(place);
  const carrier = transport("t" + number++, script);
  const host = {transport: async () => script.unknown ? null : carrier, openPlayground() {}, insertCell() {}, goTo() {}};
  window.ui = ui[surface](place, {host, ...props});
};
window.showPage = data => {
  const place = document.createElement("div");
  document.body.append(place);
  ui.mountPage(place, data);
};
window.isReady = true;
</script></body></html>"""

REVISION = "4f1c9a2e-7701-4d52-9c1c-8c0b5e9f1a3d"

OPENAPI = json.dumps(
    {
        "paths": {
            "/": {
                "post": {
                    "requestBody": {
                        "content": {
                            "application/json": {
                                "schema": {
                                    "type": "object",
                                    "required": ["prompt"],
                                    "properties": {
                                        "prompt": {"type": "string", "title": "Prompt", "default": "a cup"},
                                        "strength": {
                                            "type": "integer",
                                            "minimum": 1,
                                            "maximum": 99,
                                            "default": 25,
                                        },
                                        "kernel": {"enum": ["gaussian", "box"], "default": "gaussian"},
                                        "mask": {
                                            "anyOf": [
                                                {
                                                    "type": "object",
                                                    "properties": {
                                                        "threshold": {"type": "number", "default": 0.5}
                                                    },
                                                },
                                                {"type": "null"},
                                            ]
                                        },
                                        "labels": {
                                            "type": "array",
                                            "items": {"type": "string"},
                                            "maxItems": 8,
                                            "default": ["cup", "saucer"],
                                        },
                                        "tile": {"type": "boolean", "default": True},
                                        "pixels": {
                                            "type": "array",
                                            "items": {"type": "number"},
                                            "minItems": 4,
                                            "maxItems": 4,
                                            "default": [0, 1, 2, 3],
                                        },
                                    },
                                }
                            }
                        }
                    }
                }
            }
        }
    }
)

TRACEBACK = """Traceback (most recent call last):
  File "/x/lib/python3.11/site-packages/fal_notebook/runtime/lifecycle.py", line 50, in setup
    app.setup()
  File "In [7]", line 10, in setup
    self.names = json.load(open("/data/digits/labels.json"))
FileNotFoundError: [Errno 2] No such file or directory
"""


def phases(*states: tuple[str, float | None]) -> list[dict[str, Any]]:
    names = ("build", "start", "setup", "ready")
    return [
        {"name": name, "state": state, "duration_s": time}
        for name, (state, time) in zip(names, states, strict=True)
    ]


def detail(**changes: Any) -> dict[str, Any]:
    deployment = {
        "deployment_id": "d1",
        "state": "done",
        "revision": REVISION,
        "image": {"hash": "4f1c9a2e00", "cached": True, "size_bytes": 1},
        "phases": phases(("cached", 0), ("done", 0.4), ("done", 0.2), ("done", 0)),
        "error": None,
    } | changes.pop("deployment", {})
    base: dict[str, Any] = {
        "alias": "digits-dev-0a1b2c",
        "endpoint_id": "ada/digits-dev-0a1b2c",
        "owner": "ada",
        "revision": REVISION,
        "auth_mode": "public",
        "ephemeral": True,
        "state": "serving",
        "state_reason": None,
        "active_runners": 1,
        "machine_types": ["S"],
        "urls": {"run": "http://127.0.0.1:8780/run/ada/digits-dev-0a1b2c", "playground": "", "queue": ""},
        "deployed_at": "2026-01-02T03:04:05Z",
        "endpoints": [{"path": "/", "method": "predict"}],
        "openapi": OPENAPI,
        "requirements": [["scikit-learn==1.9.1", "numpy"]],
        "captures": [
            {
                "name": "model",
                "kind": "Forest",
                "size_bytes": 9_500_000,
                "cell": {"execution_count": 4, "cell_id": "c"},
            },
            {"name": "Scaled", "kind": "class", "size_bytes": 1_600, "cell": None},
            {"name": "clean", "kind": "function", "size_bytes": 400, "cell": None},
        ],
        "runners": [{"runner_id": "r-41c8aa", "node": "local", "ended_at": None, "error": None}],
        "event": 1,
        "deployment": deployment,
    }
    return base | changes


def card(stage: str = "sent", **changes: Any) -> dict[str, Any]:
    facts = {
        "endpoints": [{"path": "/", "method": "predict"}],
        "machine": "S",
        "requirements": ["scikit-learn==1.9.1", "numpy"],
        "captures": [
            {"name": "model", "kind": "Forest", "size_bytes": 9_500_000, "cell": {"execution_count": 4}}
        ],
    }
    data = {
        "v": 1,
        "kind": "run",
        "instance": "i",
        "app": "digits-dev-0a1b2c",
        "title": "digits",
        "stage": stage,
        "facts": facts,
        "problem": None,
        "saved_at": "2999-01-01T00:00:00Z",
    }
    return {"data": data | changes}


LACKS = {
    "code": "app.missing_requirement",
    "message": "Digits imports `cv2`, but `requirements` lacks it.",
    "fix": "Add `opencv-python-headless` to `requirements`.",
    "where": {"cell": 7, "line": 10, "cell_id": "c"},
    "traceback": None,
    "details": {},
}
FAILED = {
    "code": "runner.setup_failed",
    "message": "`FileNotFoundError`: no file `/data/digits/labels.json` on the runner",
    "fix": "The runner does not see the notebook's folders. Read the file in a cell above.",
    "where": {"cell": 7, "line": 10, "cell_id": "c"},
    "traceback": TRACEBACK,
    "details": {},
}
APP = "api/v1/apps/"
BUILDING = {
    "state": "building",
    "image": {"hash": "4f1c9a2e00", "cached": False, "size_bytes": None},
    "phases": phases(("now", None), ("next", None), ("next", None), ("next", None)),
}
SETUP = {"state": "verifying", "phases": phases(("cached", 0), ("done", 0.4), ("now", None), ("next", None))}
ABORTED = {
    "state": "aborted",
    "revision": "new",
    "error": FAILED,
    "phases": phases(("cached", 0), ("done", 0.4), ("failed", 0.8), ("next", None)),
}
ME = {"instance_id": "i", "url": "http://127.0.0.1:8780", "owner": "ada"}
PANEL_APPS = [
    detail(alias="digits", ephemeral=False, active_runners=2),
    detail(
        alias="paragraph-embeddings-multilingual-e5-small-4bit",
        ephemeral=False,
        state="idle",
        active_runners=0,
    ),
    detail(alias="voice", ephemeral=False, state="failing", state_reason="crash loop, next try in 40 s"),
    detail(),
]
LOG = ["Resolved 9 packages in 288ms", "Downloading scipy (34.1MiB)"]

CARDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "checking": ("Checking", {}, card("checking")),
    "needs_fix": ("Needs a fix", {}, card("needs_fix", problem=LACKS)),
    "building": ("Building", {"json": {APP: detail(revision=None, deployment=BUILDING)}, "log": LOG}, card()),
    "setup": ("Setup", {"json": {APP: detail(revision=None, deployment=SETUP)}, "log": LOG}, card()),
    "ready": ("Ready", {"json": {APP: detail()}, "log": LOG}, card()),
    "failed": ("Setup failed", {"json": {APP: detail(deployment=ABORTED)}, "log": LOG}, card()),
    "offline": ("Not connected", {"offline": True}, card()),
    "unknown": ("Saved view", {"unknown": True}, card(saved_at="2026-01-02T03:04:05Z")),
}


def show(page: Page, surface: str, script: dict[str, Any], props: dict[str, Any]) -> None:
    page.evaluate(
        "([surface, script, props]) => window.show(surface, script, props)", [surface, script, props]
    )


def keep(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(PICTURES / f"{name}.png"), full_page=True)


def answer(status: int, body: Any, content_type: str = "application/json") -> dict[str, Any]:
    """Return what an app answers."""
    text = body if isinstance(body, str) else json.dumps(body)
    headers = {"content-type": content_type, "x-fal-request-id": "0f8a7c31-9d1e-4c53-8a55-3b1c5d2e7f60"}
    return {"status": status, "headers": headers, "body": text}
