"""Every state of card and panel, drawn from scripted answers: looked at in both themes and three widths."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser import plan_stage
from tests.browser.axe import violations
from tests.browser.rollout_stage import DEPLOYMENT, OLD, finished, rolling, scene, scenes
from tests.browser.stage import APP, CARDS, ME, PANEL_APPS, card, detail, keep, show

pytestmark = pytest.mark.browser


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
    expect(ready).to_contain_text("and 2 definitions")
    expect(ready).not_to_contain_text("Scaled")
    failed = page.locator('.fal-card[data-state="failed"]')
    expect(failed).to_contain_text("Revision 4f1c9a2e keeps serving.")
    expect(failed.get_by_role("button", name="Run", exact=True)).to_have_count(0)
    keep(page, f"card-states.{theme}.{width}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for one in page.locator(".fal-card").all():
        assert one.evaluate("card => card.scrollWidth <= card.clientWidth")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_panel_has_its_words_in_every_state(open_page: Callable[[str, int], Page], theme: str) -> None:
    page = open_page(theme, 1280)
    full = {"json": {"api/v1/instance": ME, "api/v1/apps": {"apps": PANEL_APPS}}}
    show(page, "mountPanel", full, {"instance": "local"})
    expect(page.locator(".fal-panel").last).to_contain_text("Idle, starts on request")
    show(
        page,
        "mountPanel",
        {"json": {"api/v1/instance": ME, "api/v1/apps": {"apps": []}}},
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


@pytest.mark.parametrize(
    ("theme", "width"), [("light", 1280), ("dark", 1280), ("dark", 620), ("light", 380), ("light", 320)]
)
def test_a_rollout_has_its_words_in_every_state_and_never_scrolls_sideways(
    open_page: Callable[[str, int], Page], theme: str, width: int
) -> None:
    page = open_page(theme, width)
    for name, (word, script, props) in scenes().items():
        show(page, "mountStatusCard", script, props)
        last = page.locator(".fal-card").last
        expect(last.locator("[role=status]").first, name).to_contain_text(word)
    keep(page, f"rollout-states.{theme}.{width}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for one in page.locator(".fal-card").all():
        assert one.evaluate("card => card.scrollWidth <= card.clientWidth")
    assert violations(page) == []


def test_a_rollout_says_who_answers_and_what_each_step_took(open_page: Callable[[str, int], Page]) -> None:
    page = open_page("light", 1280)
    show(page, "mountStatusCard", *rolling())
    card_ = page.locator('.fal-card[data-state="rolling"]')
    expect(card_).to_contain_text("Deploying digits")
    expect(card_.locator('[data-step="Upload"]')).to_contain_text("0.7 s")
    expect(card_.locator('[data-step="Build"]')).to_contain_text("cached")
    expect(card_.locator('[data-step="Setup"][data-state="now"]')).to_contain_text("so far")
    expect(card_.locator('[data-step="Drain 4f1c9a2e"][data-state="next"]')).to_have_count(1)
    expect(card_.locator(".fal-tl-answers")).to_contain_text("revision 4f1c9a2e")
    expect(card_.locator('[data-runner="r-41c8bb"]')).to_contain_text("Running")
    expect(card_.locator('[data-runner="r-41c8bb"] td').last).to_have_text("3")
    expect(card_.locator('[data-runner="r-7b02aa"]')).to_contain_text("9b07d3c1")
    expect(card_.locator(".fal-fold")).to_contain_text("loading 200 trees")
    card_.get_by_role("button", name="Detach").click()
    card_.get_by_role("button", name="Abort").click()
    page.wait_for_function("() => window.acts?.length === 2")
    assert [act["path"] for act in page.evaluate("window.acts")] == [
        f"api/v1/deployments/{DEPLOYMENT}/leave",
        f"api/v1/deployments/{DEPLOYMENT}/cancel",
    ]


def test_an_aborted_rollout_says_first_what_still_works(open_page: Callable[[str, int], Page]) -> None:
    page = open_page("light", 1280)
    known = scenes()
    show(page, "mountStatusCard", *known["aborted"][1:])
    card_ = page.locator('.fal-card[data-state="aborted"]')
    expect(card_).to_contain_text("setup of revision 9b07d3c1 failed after 0.8 s")
    expect(card_).to_contain_text("Revision 4f1c9a2e keeps serving. No failed request of 12.")
    expect(card_.locator('[data-step="Healthy"]')).to_contain_text("not reached")
    expect(card_).to_contain_text('In [7], line 10 in setup: self.names = json.load(open("/data/digits')
    expect(card_.get_by_role("button", name="Go to line 10")).to_be_visible()
    expect(card_.locator(".fal-fold")).to_contain_text("2 lines")
    show(page, "mountStatusCard", *known["aborted-first"][1:])
    expect(page.locator(".fal-card").last).to_contain_text("No revision is live.")


def test_a_rollback_is_asked_for_in_its_place_and_by_keys(open_page: Callable[[str, int], Page]) -> None:
    page = open_page("light", 620)
    script, props = scene(finished(), revision=finished()["revision"])
    back_again = finished(kind="set_rev", deployment_id="d-ffeeddccbbaa")
    script["json"] = {
        "api/v1/apps/digits/revision": back_again,
        "api/v1/deployments/d-ffee": back_again,
        **script["json"],
    }
    show(page, "mountStatusCard", script, props)
    back = page.get_by_role("button", name="Roll back", exact=True)
    back.press("Enter")
    yes = page.get_by_role("button", name="Roll back to 4f1c9a2e")
    expect(yes).to_be_focused()
    keep(page, "rollout-back")
    assert violations(page) == []
    yes.press("Escape")
    expect(back).to_be_focused()
    assert page.evaluate("window.acts ?? []") == []
    back.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_function("() => window.acts?.length === 1")
    assert page.evaluate("window.acts[0].body") == {"revision": OLD}
    expect(page.locator(".fal-card [role=status]").first).to_contain_text("Rolled back")


@pytest.mark.parametrize(
    ("theme", "width"), [("light", 1280), ("dark", 1280), ("dark", 620), ("light", 380), ("light", 320)]
)
def test_a_plan_has_its_words_in_every_state_and_never_scrolls_sideways(
    open_page: Callable[[str, int], Page], theme: str, width: int
) -> None:
    page = open_page(theme, width)
    for name, (word, press, script, props) in plan_stage.scenes().items():
        before = page.locator(".place").count()
        show(page, "mountStatusCard", script, props)
        place = page.locator(".place").nth(before)
        if press is not None:
            place.get_by_role("button", name=press, exact=True).click()
        expect(place.locator("[role=status]").first, name).to_contain_text(word)
    keep(page, f"plan-states.{theme}.{width}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for one in page.locator(".fal-card").all():
        assert one.evaluate("card => card.scrollWidth <= card.clientWidth")
    assert violations(page) == []


def test_a_plan_of_a_notebook_says_what_became_of_it(open_page: Callable[[str, int], Page]) -> None:
    page = open_page("light", 1280)
    known = plan_stage.scenes()
    show(page, "mountStatusCard", *known["begun"][2:])
    plan = page.get_by_label("Deploy plan digits")
    expect(plan).to_contain_text("Confirmed")
    expect(plan.get_by_role("button")).to_have_count(0)
    deployed = page.get_by_label("Rollout digits")
    expect(deployed).to_contain_text("Deployed")
    expect(deployed.locator('[data-step="Upload"]')).to_contain_text("earlier")
    # Where the cell has confirmed it, the deployment has an output of its own.
    show(page, "mountStatusCard", *known["goes-on"][2:])
    expect(plan.last).to_contain_text("Production now")
    expect(page.get_by_label("Rollout digits")).to_have_count(1)


def test_a_plan_that_was_overtaken_says_by_whom(open_page: Callable[[str, int], Page]) -> None:
    page = open_page("light", 1280)
    known = plan_stage.scenes()
    said = {
        "stale": "Revision e07f55aa by lab-ci, made 1 min ago serves now. This plan was made against 4f1c9a2e",
        "scaled": "Settings of the app changed since this plan was made.",
    }
    for name, sentence in said.items():
        show(page, "mountStatusCard", *known[name][2:])
        card_ = page.get_by_label("Deploy plan digits").last
        card_.get_by_role("button", name="Confirm").click()
        expect(card_).to_contain_text(sentence)
        expect(card_.get_by_role("button", name="Confirm")).to_have_count(0)
        expect(card_.get_by_role("button", name="Check again")).to_be_visible()
