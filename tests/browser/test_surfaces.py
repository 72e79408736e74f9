"""Every state of card and panel, drawn from scripted answers: looked at in both themes and three widths."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import PICTURES, ROOT

pytestmark = pytest.mark.browser

BUNDLE = ROOT / "fal_notebook" / "static" / "fal-ui.js"
VALUES = ROOT / "labextension" / "src" / "page" / "values.css"

SHELL = """<!doctype html><html><head><meta charset="utf-8"><style>%s body{padding:12px} .place{margin-bottom:16px}</style></head>
<body><script type="module">
import * as ui from "/fal-ui.js";
const never = () => new Promise(() => undefined);
function transport(key, script) {
  return {
    key,
    async json(path) {
      const found = Object.entries(script.json ?? {}).find(([start]) => path.startsWith(start));
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
      for (const text of (path.includes("/log") && script.log) || []) {
        yield {data: JSON.stringify({offset: 1, at: "2026-01-02T03:04:05Z", stream: path.includes("images") ? "build" : "stdout", text}), id: null, event: null};
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
window.isReady = true;
</script></body></html>"""

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
        "revision": "4f1c9a2e77",
        "image": {"hash": "4f1c9a2e00", "cached": True, "size_bytes": 1},
        "phases": phases(("cached", 0), ("done", 0.4), ("done", 0.2), ("done", 0)),
        "error": None,
    } | changes.pop("deployment", {})
    base: dict[str, Any] = {
        "alias": "digits-dev-0a1b2c",
        "endpoint_id": "ada/digits-dev-0a1b2c",
        "owner": "ada",
        "revision": "4f1c9a2e77",
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
            }
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


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[[str, int], Page]]:
    if not BUNDLE.exists():
        pytest.skip("the front end is not built (make front)")
    contexts = []

    def open_page(theme: str, width: int) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.route(
            "http://fal.test/**",
            lambda route: route.fulfill(
                body=BUNDLE.read_text() if route.request.url.endswith(".js") else SHELL % VALUES.read_text(),
                content_type="text/javascript" if route.request.url.endswith(".js") else "text/html",
            ),
        )
        page.goto("http://fal.test/")
        page.wait_for_function("() => window.isReady")
        return page

    yield open_page
    for context in contexts:
        context.close()


def show(page: Page, surface: str, script: dict[str, Any], props: dict[str, Any]) -> None:
    page.evaluate(
        "([surface, script, props]) => window.show(surface, script, props)", [surface, script, props]
    )


def keep(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(PICTURES / f"{name}.png"), full_page=True)


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 620), ("light", 320)])
def test_card_has_its_words_in_every_state_and_never_scrolls_sideways(
    open_page: Callable[[str, int], Page], theme: str, width: int
) -> None:
    page = open_page(theme, width)
    for word, script, props in CARDS.values():
        show(page, "mountStatusCard", script, props)
        expect(page.locator(".fal-card").last.locator("[role=status]").first).to_contain_text(word)
    ready = page.locator('.fal-card[data-state="ready"]')
    expect(ready).to_contain_text("Downloading scipy")
    keep(page, f"card-states.{theme}.{width}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for one in page.locator(".fal-card").all():
        assert one.evaluate("card => card.scrollWidth <= card.clientWidth")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_panel_has_its_words_in_every_state(open_page: Callable[[str, int], Page], theme: str) -> None:
    page = open_page(theme, 1280)
    me = {"instance_id": "i", "url": "http://127.0.0.1:8780", "owner": "ada"}
    apps = [
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
    full = {"json": {"api/v1/instance": me, "api/v1/apps": {"apps": apps}}}
    show(page, "mountPanel", full, {"instance": "local"})
    expect(page.locator(".fal-panel").last).to_contain_text("Idle, starts on request")
    show(
        page,
        "mountPanel",
        {"json": {"api/v1/instance": me, "api/v1/apps": {"apps": []}}},
        {"instance": "local"},
    )
    expect(page.locator(".fal-panel").last).to_contain_text("%%fal_app")
    show(page, "mountPanel", {"offline": True}, {"instance": "local"})
    expect(page.locator(".fal-panel").last).to_contain_text("No answer from the backend")
    expect(page.locator(".fal-panel").last.get_by_role("button", name="Start backend")).to_be_visible()
    keep(page, f"panel-states.{theme}")


def test_wrong_field_gets_the_focus_and_a_422_its_place(open_page: Callable[[str, int], Page]) -> None:
    page = open_page("light", 1280)
    wrong = {
        "detail": [{"loc": ["body", "labels", 1], "msg": "Value error, Unknown label", "input": "saucer"}]
    }
    answer = {"status": 422, "headers": {"content-type": "application/json"}, "body": json.dumps(wrong)}
    show(page, "mountStatusCard", {"json": {APP: detail()}, "call": answer}, card())
    box = page.get_by_label("strength")
    box.fill("120")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".fal-card")).to_contain_text("Must be at most 99.")
    expect(box).to_be_focused()
    assert page.evaluate("window.calls ?? []") == []
    box.press("PageDown")
    expect(box).to_have_value("99")
    box.press("Shift+Enter")
    expect(page.locator(".fal-card")).to_contain_text("Unknown label.")
    expect(page.get_by_label("labels 2")).to_be_focused()
    keep(page, "playground-422")


def test_lists_are_edited_by_keys(open_page: Callable[[str, int], Page]) -> None:
    page = open_page("light", 1280)
    answer = {"status": 200, "headers": {"content-type": "application/json"}, "body": "{}"}
    show(page, "mountStatusCard", {"json": {APP: detail()}, "call": answer}, card())
    page.get_by_label("labels 1").press("Enter")
    expect(page.get_by_label("labels 2")).to_be_focused()
    page.keyboard.type("spoon")
    page.keyboard.press("Alt+ArrowUp")
    expect(page.get_by_label("labels 1")).to_be_focused()
    page.get_by_label("Send mask").check()
    page.get_by_label("pixels").fill("[1 2\n3,4]")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".fal-card")).to_contain_text("200 OK")
    sent = json.loads(page.evaluate("window.calls[0].body"))
    assert sent == {
        "prompt": "a cup",
        "strength": 25,
        "kernel": "gaussian",
        "mask": {"threshold": 0.5},
        "labels": ["spoon", "cup", "saucer"],
        "tile": True,
        "pixels": [1, 2, 3, 4],
    }
    keep(page, "playground-form")
