"""Deployments in real JupyterLab: who answers meanwhile, left, aborted, failed, taken back by a button."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Request, expect

from tests.browser.axe import violations
from tests.browser.conftest import Session, until
from tests.browser.test_playground import LOAD

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CELL = """import fal, pathlib, time

class {name}(fal.App):
    machine_type = "XS"
    keep_alive = 300
    app_auth = "public"

    def setup(self):
        {setup}

    @fal.endpoint("/")
    def run(self) -> dict:
        return {{"said": "{said}"}}
"""
SLOW = """print("loading trees")
        while not pathlib.Path("{gate}").exists():
            time.sleep(0.05)"""


def cell(name: str, said: str, setup: str = "pass") -> str:
    return CELL.format(name=name, said=said, setup=setup)


def card(session: Session, state: str, title: str) -> Locator:
    """Return the card of this app's deployment once it is in this state."""
    found = session.page.locator(f'.fal-card[data-state="{state}"][aria-label="Rollout {title}"]').last
    found.wait_for(state="attached", timeout=120_000)
    found.scroll_into_view_if_needed()
    return found


def said(url: str) -> str:
    """Return what an app answers to a plain call."""
    request = urllib.request.Request(url, data=b"{}", headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.loads(answer.read())["said"])


def url_of(card_: Locator) -> str:
    """Return the address that a card shows."""
    return card_.locator("code", has_text="/run/").first.text_content() or ""


def picture(session: Session, card_: Locator, name: str) -> None:
    card_.evaluate("card => card.getRootNode().host.scrollIntoView({block: 'center'})")
    session.picture(name)


@pytest.fixture
def gate() -> Iterator[Path]:
    """A file that lets a setup end; runners do not see the test's own folder."""
    folder = Path(tempfile.mkdtemp(prefix="fal-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder / "gate"
    shutil.rmtree(folder)


def outputs(session: Session, notebook: str) -> list[dict[str, Any]]:
    """Save the notebook and return the data of its cards."""
    document = json.loads(session.saved(notebook))
    bundles = [one.get("data", {}) for part in document["cells"] for one in part["outputs"]]
    return [
        one["application/vnd.fal-notebook.v1+json"]
        for one in bundles
        if "application/vnd.fal-notebook.v1+json" in one
    ]


def test_the_old_revision_answers_until_the_new_one_is_ready_and_again_after_a_rollback(
    session: Session, gate: Path
) -> None:
    page = session.page
    second = cell("Turn", "two", SLOW.format(gate=gate))
    name = session.lab.notebook(LOAD, cell("Turn", "one"), "%fal deploy Turn", second, "%fal deploy Turn")
    session.open(name)
    session.run_all(wait=False)
    url = url_of(card(session, "deployed", "turn"))
    rolling = card(session, "rolling", "turn")
    until(
        lambda: page.locator('[data-step="Setup"][data-state="now"] >> nth=-1').count(), "the slow setup", 120
    )
    expect(rolling.locator('[data-step^="Drain "][data-state="next"]')).to_have_count(1, timeout=60_000)
    expect(rolling.locator(".fal-tl-answers")).to_contain_text(re.compile("revision [0-9a-f]{8}"))
    expect(rolling.locator("[data-runner]")).to_have_count(2)
    expect(rolling.locator(".fal-fold")).to_contain_text("loading trees", timeout=30_000)
    assert said(url) == "one"
    picture(session, rolling, "rollout-rolling")
    assert not violations(page, ".fal-card-output")

    # The cell is free, and the rollout goes on.
    rolling.get_by_role("button", name="Detach").click()
    expect(rolling).to_contain_text("Detached: the rollout goes on", timeout=30_000)
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    until(lambda: all(re.search(r"\[\d+\]", text) for text in prompts.all_inner_texts()), "the cell is free")
    picture(session, rolling, "rollout-detached")
    gate.touch()
    done = card(session, "deployed", "turn")
    expect(done).to_contain_text(re.compile(r"Deployed\s*revision [0-9a-f]{8}"), timeout=60_000)
    expect(done).to_contain_text(re.compile(r"in \d.*no failed request of 1"), timeout=60_000)
    until(lambda: said(url) == "two", "the new answer")
    picture(session, done, "rollout-deployed")

    # The kernel is not asked for the way back.
    session.lab.end_kernels()
    done.get_by_role("button", name="Roll back", exact=True).click()
    done.get_by_role("button", name=re.compile("Roll back to [0-9a-f]{8}")).click()
    expect(page.get_by_text("Rolled back")).to_be_visible(timeout=60_000)
    until(lambda: said(url) == "one", "the old answer")
    picture(session, done, "rollout-back")

    # Opened again it says what became of it.
    outputs(session, name)
    page.goto("about:blank")
    session.open(name)
    replaced = card(session, "replaced", "turn")
    expect(replaced).to_contain_text("answers now")
    expect(replaced.locator('[data-step="Switch"][data-state="done"]')).to_have_count(1)
    picture(session, replaced, "rollout-reopened")
    assert not session.errors


def test_an_aborted_rollout_leaves_the_old_revision(session: Session, gate: Path) -> None:
    page = session.page
    second = cell("Halt", "two", SLOW.format(gate=gate))
    session.open(
        session.lab.notebook(LOAD, cell("Halt", "one"), "%fal deploy Halt", second, "%fal deploy Halt")
    )
    session.run_all(wait=False)
    until(lambda: page.locator('[data-step="Setup"][data-state="now"]').count(), "the slow setup", 120)
    url = url_of(card(session, "deployed", "halt"))
    rolling = card(session, "rolling", "halt")
    rolling.get_by_role("button", name="Abort").click()
    halted = card(session, "aborted", "halt")
    expect(halted).to_contain_text(re.compile(r"was stopped in setup after"))
    expect(halted).to_contain_text(re.compile(r"Revision [0-9a-f]{8} keeps serving\."))
    expect(halted.locator('[data-step="Switch"]')).to_contain_text("not reached")
    assert said(url) == "one"
    picture(session, halted, "rollout-halted")
    assert not session.errors


def test_a_setup_that_fails_says_where_and_the_old_revision_keeps_serving(
    session: Session, gate: Path
) -> None:
    page = session.page
    second = cell("Lost", "two", 'print("opening")\n        self.names = open("/nowhere/labels.json")')
    name = session.lab.notebook(LOAD, cell("Lost", "one"), "%fal deploy Lost", second, "%fal deploy Lost")
    session.open(name)
    session.run_all(wait=False)
    lost = card(session, "aborted", "lost")
    url = url_of(session.page.locator('.fal-card[data-state="deployed"]'))
    expect(lost).to_contain_text(re.compile(r"setup of revision [0-9a-f]{8} failed after"))
    expect(lost).to_contain_text(re.compile(r"Revision [0-9a-f]{8} keeps serving\."))
    expect(lost).to_contain_text("marked failed")
    expect(lost).to_contain_text('self.names = open("/nowhere/labels.json")')
    expect(lost.locator(".fal-fold")).to_contain_text(re.compile(r"\d+ lines?"), timeout=30_000)
    assert said(url) == "one"
    picture(session, lost, "rollout-lost")
    assert not violations(page, ".fal-card-output")
    lost.get_by_role("button", name=re.compile("Go to line")).click()
    expect(page.locator(".jp-Cell.jp-mod-active")).to_contain_text("/nowhere/labels.json")

    # The output keeps all of it but the way to the backend.
    kept = next(one for one in outputs(session, name) if one["problem"])
    assert kept["rollout"]["state"] == "aborted"
    assert "http" not in json.dumps(kept["rollout"])
    assert not session.errors


def test_four_cards_roll_at_once_and_ordinary_calls_go_through(session: Session, gate: Path) -> None:
    page = session.page
    streams: set[str] = set()
    page.on("request", lambda request: _is_stream(request) and streams.add(request.url))
    for how in ("requestfinished", "requestfailed"):
        page.on(how, lambda request: streams.discard(request.url))
    titles = ["north", "east", "south", "west"]
    setup = SLOW.format(gate=gate)
    session.open(
        session.lab.notebook(
            LOAD,
            *(
                part
                for one in titles
                for part in (cell(one.title(), one, setup), f"%fal deploy {one.title()}")
            ),
        )
    )
    session.run_all(wait=False)
    cards = []
    for title in titles:
        cards.append(card(session, "rolling", title))
        # The cell is freed, so that the next one rolls out beside it.
        cards[-1].get_by_role("button", name="Detach").click()
    for one in cards:
        expect(one.locator(".fal-fold")).to_contain_text("loading trees", timeout=60_000)
        expect(one.locator("[data-runner]")).to_have_count(1)
    assert len(streams) == 2, "events, and all that is watched"
    answered = page.evaluate(
        """async url => (await fetch(url, {cache: 'no-store', signal: AbortSignal.timeout(60000)})).status""",
        f"{session.lab.url}fal/i/local/api/v1/instance?token={session.lab.token}",
    )
    assert answered == 200
    cards[0].get_by_role("button", name="Abort").click()
    expect(card(session, "aborted", "north")).to_contain_text("was stopped in setup")
    gate.touch()
    for title in titles[1:]:
        card(session, "deployed", title)
    assert not session.errors


def _is_stream(request: Request) -> bool:
    return (
        re.search(r"/api/v1/(events|watch|logs|images/[^?]*/log|apps/[^?]*/loads)\b", request.url) is not None
    )
