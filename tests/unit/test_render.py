from __future__ import annotations

import json
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from fal_notebook import render
from fal_notebook.commands.results import (
    AppsListed,
    Check,
    Diagnosed,
    EnvironmentsListed,
    Frame,
    LinesShown,
    MachinesListed,
    Progress,
    SecretsListed,
    Served,
    Shipped,
    Stage,
    Stopped,
    Told,
    Verdict,
)
from fal_notebook.errors import RunnerError, Where
from fal_notebook.render import revisions
from fal_notebook.render.tables import SPARE
from fal_notebook.render.text import table
from fal_notebook.render.words import age, seconds, size
from fal_notebook.wire import (
    MIME_TYPE,
    AppSpec,
    BundleManifest,
    Capture,
    CellRef,
    Deployment,
    EndpointSpec,
    ErrorBody,
    LogLine,
    MachineType,
)
from fal_notebook.wire_secrets import EnvironmentInfo, SecretInfo

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OPENAPI = {
    "paths": {"/": {"post": {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/c/In"}}}}}}},
    "c": {"In": {"required": ["n", "s"], "properties": {"n": {"type": "integer"}, "s": {"type": "string"}, "d": {"default": 5}, "o": {}}}},
}  # fmt: skip


def deployment(**changes: Any) -> Deployment:
    base = {
        "deployment_id": "d-1", "app_name": "digits-dev-abc123", "endpoint_id": "ada/digits-dev-abc123",
        "ephemeral": True, "state": "done", "auth": "public", "created_at": NOW, "revision": "7",
        "image": {"hash": "4f1c9a2e00", "cached": True},
        "phases": [{"name": "build", "state": "cached"}, {"name": "start", "state": "done", "duration_s": 0.4},
                   {"name": "setup", "state": "done", "duration_s": 0.2}, {"name": "ready", "state": "done"}],
        "urls": {"run": "http://h:1/run/ada/digits-dev-abc123", "queue": "http://h:1/q", "playground": "http://h:1/p"},
    }  # fmt: skip
    return Deployment.model_validate(base | changes)


def progress(**changes: Any) -> Progress:
    spec = AppSpec(
        class_name="Digits", app_name="digits", python_version="3.11", openapi=json.dumps(OPENAPI),
        endpoints=[EndpointSpec(path="/", method="run")], requirements=[["numpy"]],
    )  # fmt: skip
    capture = Capture(
        name="model", kind="sklearn.Forest", size_bytes=9_500_000, digest="x", cell=CellRef(execution_count=4)
    )
    manifest = BundleManifest(
        identity="i", payload_sha256="p", payload_bytes=1, python_version="3.11", captures=[capture]
    )
    made = Progress(
        title="digits",
        kind="run",
        stage=Stage.SENT,
        check_s=0.1,
        spec=spec,
        manifest=manifest,
        instance="i-1",
    )
    return (
        made.with_(deployment=deployment(), **changes)
        if "deployment" not in changes
        else made.with_(**changes)
    )


class Balanced(HTMLParser):
    """Knows whether all tags are closed, and what was used."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen |= {tag, *(name for name, _ in attrs)}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(html: str) -> str:
    reader = Balanced()
    reader.feed(html)
    assert not reader.open
    assert not {"script", "class", "onclick", "style_"} & reader.seen
    return html


@pytest.mark.parametrize(
    ("value", "text"), [(0.0064, "6.4 ms"), (0.076, "76 ms"), (0.4, "0.4 s"), (4.02, "4.0 s"), (12, "12 s"), (180, "3 min"), (7200, "2 h")]
)  # fmt: skip
def test_durations_have_few_units(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (987, "987 B"), (3800, "3.8 kB"), (9_500_000, "9.5 MB"), (4_000_000_000, "4.0 GB")],
)
def test_sizes(value: int, text: str) -> None:
    assert size(value) == text


def test_ages_are_relative_under_a_day() -> None:
    assert age(NOW, NOW) == "now"
    assert age(datetime(2026, 1, 2, 3, 3, 5, tzinfo=UTC), NOW) == "1 min ago"
    assert age(datetime(2025, 12, 30, tzinfo=UTC), NOW) == "2025-12-30"


def test_a_ready_card_says_name_url_steps_facts_and_curl() -> None:
    text = render.card_bundle(progress())["text/plain"]
    lines = text.splitlines()
    assert lines[0] == "digits-dev-abc123 is ready: http://h:1/run/ada/digits-dev-abc123"
    assert lines[1] == "✓ Check 0.1 s · ✓ Build cached · ✓ Start 0.4 s · ✓ Setup 0.2 s"
    assert "Captured: model Forest, 9.5 MB, from In [4]" in lines
    assert """-d '{"n": 0, "s": "", "d": 5}'""" in text
    assert "Authorization" not in text


def test_a_private_apps_curl_takes_the_key_from_the_shell() -> None:
    text = render.card_bundle(progress(deployment=deployment(auth="private")))["text/plain"]
    assert '-H "Authorization: Key $FAL_KEY"' in text


def test_our_data_has_neither_address_nor_key_and_keeps_the_schema_as_text() -> None:
    bundle = render.card_bundle(progress(), NOW)
    data = bundle[MIME_TYPE]
    assert list(bundle) == [MIME_TYPE, "text/html", "text/plain"]
    assert "://" not in json.dumps(data)
    assert json.loads(data["schema"]) == OPENAPI
    assert (data["v"], data["kind"], data["instance"], data["stage"]) == (1, "run", "i-1", "sent")
    assert data["facts"]["machine"] == "S"
    assert data["saved_at"] == "2026-01-02T03:04:05+00:00"


STATES = [
    progress(stage=Stage.CHECKING, deployment=None),
    progress(stage=Stage.NEEDS_FIX, deployment=None, problems=(ErrorBody(code="app.x", message="<b>No</b>", fix="Do & go."),)),
    progress(deployment=deployment(state="building", phases=[{"name": "build", "state": "now"}]), log=("<line>",)),
    progress(),
    progress(deployment=deployment(ephemeral=False, changed=False)),
    progress(deployment=deployment(state="cancelled")),
    progress(stage=Stage.STOPPED),
    progress(stage=Stage.CHECKED, deployment=None),
]  # fmt: skip


@pytest.mark.parametrize("state", STATES, ids=lambda state: str(state.stage))
def test_every_state_is_drawn_as_closed_escaped_html_and_as_text(state: Progress) -> None:
    html = checked(render.card_bundle(state)["text/html"])
    assert "<b>No</b>" not in html
    assert "<line>" not in html
    assert (
        render.card_bundle(state)["text/plain"].startswith("digits")
        or "Already" in render.card_bundle(state)["text/plain"]
    )


def failed() -> Progress:
    body = ErrorBody(
        code="runner.setup",
        message="FileNotFoundError: no file",
        fix="Capture it.",
        traceback="T",
        details={"runner_id": "r-41"},
    )
    phases = [{"name": "setup", "state": "failed", "duration_s": 0.8}]
    frame = Frame("In [7]", 10, "setup", ((9, "a = 1"), (10, "open(x)")))
    return progress(
        deployment=deployment(state="aborted", ephemeral=False, phases=phases), problems=(body,), frames=(frame,),
        hidden_frames=2, log=("one", "two"), serving="6",
    )  # fmt: skip


def test_a_failed_setup_says_what_where_why_and_one_thing_to_do() -> None:
    text = render.card_bundle(failed())["text/plain"]
    for part in (
        "digits: Setup failed (after 0.8 s on runner r-41)", "FileNotFoundError: no file", "In [7], line 10 in setup",
        "->   10 open(x)", "2 more frames outside your code", "Capture it.", "  two", "Revision 6 keeps serving.",
    ):  # fmt: skip
        assert part in text
    html = checked(render.card_bundle(failed())["text/html"])
    assert "Revision 6 keeps serving." in html
    assert "In [7], line 10 in setup" in html


def test_a_backend_that_does_not_answer_is_not_the_cells_fault() -> None:
    down = progress(
        stage=Stage.NEEDS_FIX,
        deployment=None,
        problems=(ErrorBody(code="backend.unreachable", message="No answer."),),
    )
    assert "Not connected" in render.card_bundle(down)["text/plain"]


@pytest.mark.parametrize("code", ["auth.forbidden", "auth.shared_disabled"])
def test_a_refusal_of_the_backend_is_no_lost_connection(code: str) -> None:
    refused = progress(
        stage=Stage.NEEDS_FIX, deployment=None, problems=(ErrorBody(code=code, message="You may not."),)
    )
    assert "Not allowed" in render.card_bundle(refused)["text/plain"]


def test_an_errors_text_and_document_have_all_parts() -> None:
    error = RunnerError(
        "It ended.", fix="Do this.", where=Where(cell=7, line=3, name="run"), traceback="line a\nline b"
    )
    text = render.error_text(error)
    assert text == "It ended.\nIn [7], line 3 (run)\n  line a\n  line b\nDo this."
    body = render.error_document(error)["error"]
    assert (body["code"], body["fix"], body["where"]["line"]) == ("runner.failed", "Do this.", 3)


@pytest.mark.parametrize(
    ("result", "text", "keys"),
    [
        (AppsListed(()), "No apps yet.", {"apps"}),
        (MachinesListed((MachineType(name="S", cpu=1, memory_mb=1024),)), "1 GB", {"machines"}),
        (LinesShown((LogLine(offset=3, at=NOW, stream="stdout", text="hello", runner_id="r-1"),)), "hello", {"logs"}),
        (Stopped("a"), "Stopped a", {"app", "stopped"}),
        (Served("http://h:1", "/d", 1, 2, "/d/key"), "Serving at http://h:1", {"url", "tls_url", "home", "pid", "backend_pid"}),
        (Diagnosed((Check("uv", Verdict.FAIL, "not found", "Run x."),)), "not found", {"healthy", "checks"}),
    ],
)  # fmt: skip
def test_results_have_text_html_and_one_document(result: Any, text: str, keys: set[str]) -> None:
    assert text in render.text(result)
    checked(render.html(result))
    document = render.document(result)
    assert set(document) == keys
    json.dumps(document)


def test_a_failed_calls_traceback_is_shown_as_lines() -> None:
    line = LogLine(
        offset=3,
        at=NOW,
        stream="stdout",
        text=json.dumps({"traceback": "Traceback:\n  x = a[\"k\"]\nKeyError: 'k'\n"}),
    )
    assert render.log_line(line).endswith("Traceback:\n  x = a[\"k\"]\nKeyError: 'k'")
    cut = line.model_copy(update={"text": '{"traceback": "cut'})
    assert render.log_line(cut).endswith('{"traceback": "cut')


def test_a_deployment_has_the_agreed_document() -> None:
    found = render.document(Shipped(deployment(), progress()))
    assert found["ephemeral"] is True
    assert set(found) == {
        "revision",
        "app_name",
        "status",
        "changed",
        "endpoint_id",
        "environment",
        "urls",
        "image",
        "ephemeral",
    }
    assert found["urls"]["run"].startswith("http://h:1/run/")


def test_what_was_done_is_said_and_secrets_are_listed_without_values() -> None:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    said = Told("Set T in environment main.", {"secrets": []})
    assert render.text(said) == "Set T in environment main."
    assert "Set T" in render.bundle(said)["text/html"]
    assert render.document(said) == {"secrets": []}
    listed = SecretsListed((SecretInfo(name="T", environment="staging", created_at=when),))
    assert "staging" in render.text(listed)
    assert render.document(listed)["secrets"][0]["name"] == "T"
    environments = EnvironmentsListed((EnvironmentInfo(name="main", is_default=True, created_at=when),))
    assert "main" in render.text(environments)
    assert set(render.document(environments)["environments"][0]) == {
        "name",
        "description",
        "is_default",
        "created_at",
    }


def test_a_table_is_folded_to_a_terminals_width_and_nowhere_else() -> None:
    head, rows = ("Check", "Result", "Found"), [("sandbox", "ok", "word " * 40), ("uv", "ok", "/bin/uv")]
    whole = table(head, rows).splitlines()
    assert len(whole) == 3
    folded = table(head, rows, 80).splitlines()
    assert max(len(line) for line in folded) <= 80
    assert " ".join(" ".join(folded).split()).count("word") == 40
    assert folded[0].split() == list(head)
    wide = tuple(f"column-{number}" for number in range(12))
    assert table(wide, [wide], 80) == table(wide, [wide]), "what is to be copied stays whole"


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_goes_without_the_columns_that_matter_least_and_says_which(width: int) -> None:
    full = (
        "049e40c1",
        "current",
        "90 %",
        "1",
        "0/2",
        "1",
        "600 s",
        "XS",
        "1203",
        "0.1 %",
        "12.3 ms",
        "root",
        "now",
        "a note",
    )
    bare = (*full[:8], "", "", "", "root", "1 min ago", "")
    shown = table(revisions.HEAD, [full, bare], width, SPARE)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert all(
        name in shown.splitlines()[0] for name in ("Revision", "State", "Callers", "Runners", "Message")
    )
    without = " ".join(shown[shown.index("Without") :].split())
    assert "Multiplex" in without
    assert "--json has all" in without
    assert table(revisions.HEAD, [full, bare], 150, SPARE) == table(revisions.HEAD, [full, bare])


def test_a_wide_column_that_goes_makes_room_for_those_before_it() -> None:
    head = ("App", "Auth", "Deployed", "URL")
    row = (
        "echo",
        "private",
        "8 min ago",
        "http://127.0.0.1:8780/run/anna/a-name-that-is-quite-a-bit-too-long-for-a-line-of-80",
    )
    first = table(head, [row], 80, ("Auth", "Deployed", "URL")).splitlines()
    assert first[0].split() == ["App", "Auth", "Deployed"]
    assert first[2] == "Without URL: a wider terminal or --json has all."
