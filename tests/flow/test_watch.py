"""One stream for all that a page watches: loads of apps and logs of runners, apps and builds, with a real backend."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator

import httpx
import pytest

from fal_notebook.sse import Decoder, ServerEvent
from tests.stack import Stack

APP = """
import fal

class {cls}(fal.App):
    machine_type = "XS"
    keep_alive = 300

    def setup(self):
        print("hello from {cls}")

    @fal.endpoint("/")
    def run(self) -> dict:
        print("called")
        return {{}}
"""


def deployed(shared: Stack, cls: str) -> tuple[str, str]:
    """Deploy a class; return its alias and the id of its runner."""
    path = shared.file(f"{cls.lower()}.py", APP.format(cls=cls))
    alias = shared.cli_json("deploy", f"{path}::{cls}")["app_name"]
    runners = shared.api("GET", f"/runners?app={alias}").json()["runners"]
    return alias, runners[0]["runner_id"]


def watched(shared: Stack, *topics: str) -> Iterator[tuple[str, ServerEvent]]:
    """Yield (topic, what came of it) for as long as the caller reads."""
    query = httpx.QueryParams([("on", topic) for topic in topics])
    key = {"Authorization": f"Key {shared.key}"}
    decoder, topic = Decoder(), ""
    with httpx.stream("GET", f"{shared.url}/api/v1/watch", params=query, headers=key, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        for chunk in answer.iter_bytes():
            for event in decoder.feed(chunk):
                if event.event == "of":
                    topic = topics[int(event.data)]
                else:
                    yield topic, event


def test_a_page_watches_several_apps_in_one_stream(shared: Stack) -> None:
    one, first = deployed(shared, "WatchOne")
    two, second = deployed(shared, "WatchTwo")
    topics = [f"loads/{one}", f"runner/{first}", f"app/{two}", f"runner/{second}", "runner/r-nowhere"]
    seen: dict[str, list[str]] = defaultdict(list)
    for topic, event in watched(shared, *topics):
        seen[topic].append(event.event or event.data)
        if len(seen) == len(topics):
            break
    assert json.loads(seen[f"loads/{one}"][0]) == {first: 0}
    assert "hello from WatchOne" in seen[f"runner/{first}"][0]
    assert "hello from WatchTwo" in seen[f"app/{two}"][0]
    assert "hello from WatchTwo" in seen[f"runner/{second}"][0]
    assert seen["runner/r-nowhere"] == ["error"], "what is not there says so, and the rest goes on"


def test_a_log_is_gone_on_with_from_a_line_and_says_when_it_ended(shared: Stack) -> None:
    alias, runner = deployed(shared, "WatchOn")
    hello = next(event for _, event in watched(shared, f"runner/{runner}") if "hello" in event.data)
    assert shared.call(alias, {}).status_code == 200
    shared.api("POST", f"/runners/{runner}/stop")
    rest = [
        event.event or json.loads(event.data)["text"]
        for _, event in until_end(shared, f"runner/{runner}@{hello.id}")
    ]
    assert "called" in rest
    assert "hello from WatchOn" not in rest
    assert rest[-1] == "end"


def until_end(shared: Stack, topic: str) -> Iterator[tuple[str, ServerEvent]]:
    for found in watched(shared, topic):
        yield found
        if found[1].event == "end":
            return


@pytest.mark.parametrize("topic", ["nonsense", "runner/../keys", "loads/", "runner/r-1@x"])
def test_what_is_no_topic_is_refused(shared: Stack, topic: str) -> None:
    assert shared.api("GET", f"/watch?on={topic}").status_code in (400, 422)
