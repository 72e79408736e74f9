"""Revisions of apps over a real store: kept, compared, chosen, split, removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fal_backend.domain.comparison import Side, compare
from fal_backend.domain.records import Deployment, Revision
from fal_backend.domain.revision import checked_annotations, effective_scale, scaled
from fal_backend.domain.scaling import branch_scale
from fal_backend.services.deploy import Author

from fal_notebook.errors import DeployError, NotFoundError, UsageError
from fal_notebook.wire import AppSpec, BundleManifest, Capture, ScaleSpec
from fal_notebook.wire_deploy import SetRevision
from tests.unit.test_reconcile import House, house

BY = Author("ada", "fk_1")


async def revisions(home: House) -> list[Revision]:
    store = home.revisions._store
    rows: list[Revision] = await store.read(lambda reader: reader.find(Revision, account="local", app="app"))
    return rows


async def shipped(home: House, *bundles: str) -> list[str]:
    """Deploy several bundles one after the other and return their revisions."""
    home.hello()
    for bundle in bundles:
        await home.state(await home.ship("app", bundle=bundle), "done")
    return [row.id for row in await revisions(home)]


async def test_going_back_builds_nothing_and_keeps_what_was_tuned(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        first, _ = await shipped(home, "one", "two")
        await home.apps.scale("local", "app", ScaleSpec(max_concurrency=9))
        outcome = await home.revisions.choose("local", "app", SetRevision(revision=first[:8]), BY)
        row = await home.state(outcome.deployment.id, "done")
        assert json.loads(row.phases_json)["build"][2] == "cached"
        alias = home.ledger.alias(("local", "app"))
        assert alias is not None
        assert (alias.revision, json.loads(alias.scale_json)["max_concurrency"]) == (first, 9)
        again = await home.revisions.choose("local", "app", SetRevision(revision=first), BY)
        assert not again.changed


async def test_a_split_begins_grows_and_ends_by_one_command_each(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        first, second = await shipped(home, "one", "two")

        async def give(percent: int) -> Deployment:
            order = SetRevision(revision=first, percent=percent)
            return (await home.revisions.choose("local", "app", order, BY)).deployment

        def split() -> tuple[str, str | None, int | None]:
            alias = home.ledger.alias(("local", "app"))
            assert alias is not None
            return alias.revision, alias.split_revision, alias.split_percent

        await home.state((await give(10)).id, "done")
        assert split() == (second, first, 10)
        await give(40)
        assert split() == (second, first, 40)
        await give(0)
        assert split() == (second, None, None)
        with pytest.raises(UsageError, match="no part"):
            await give(0)
        with pytest.raises(UsageError, match="split from"):
            await home.revisions.choose("local", "app", SetRevision(revision=second, percent=5), BY)
        await home.state((await give(20)).id, "done")
        await home.state((await give(100)).id, "done")
        assert split() == (first, None, None)


async def test_what_is_in_use_cannot_be_deleted_and_what_is_not_goes_with_its_acts(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        first, second = await shipped(home, "one", "two")
        with pytest.raises(DeployError, match="serves callers"):
            await home.revisions.delete("local", second)
        await home.until(lambda: not home.ledger.live_of(first))
        assert await home.revisions.delete("local", first[:10]) == first
        assert [row.id for row in await revisions(home)] == [second]
        with pytest.raises(NotFoundError):
            await home.revisions.detail("local", first)


async def test_only_so_many_are_kept_and_those_in_use_always(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.revisions.kept = 2
        home.deploy.on_revision = home.revisions.note
        ids = await shipped(home, "one", "two")
        await home.state(
            (await home.revisions.choose("local", "app", SetRevision(revision=ids[0]), BY)).deployment.id,
            "done",
        )
        for bundle in ("three", "four", "five"):
            home.hosts.fails = True
            await home.state(await home.ship("app", bundle=bundle), "aborted")
        await home.until(lambda: not home.revisions._tasks)
        left = await revisions(home)
        assert ids[0] in [row.id for row in left], "it serves"
        assert ids[1] not in [row.id for row in left]
        assert len(left) <= 3


async def test_a_revision_that_failed_says_why(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.hosts.fails = True
        home.hello()
        await home.state(await home.ship("app"), "aborted")
        (row,) = await revisions(home)
        fields, acts = await home.revisions.detail("local", row.id)
        assert (fields["status"], fields["error"].message, acts[0].state) == ("failed", "boom", "aborted")
        assert home.ledger.alias(("local", "app")) is None


def side(id: str, source: str, **more: object) -> Side:
    spec = AppSpec(class_name="A", app_name="app", python_version="3.11", requirements=[["numpy"]])
    manifest = BundleManifest(identity=id, payload_sha256="0", payload_bytes=1, python_version="3.11", source=source,
                              captures=[Capture(name="model", kind="x", size_bytes=len(id), digest=id)])  # fmt: skip
    return Side(id, spec.model_copy(update=more), manifest, effective_scale(ScaleSpec(), None), "private")


def test_two_revisions_are_compared_in_code_requirements_settings_and_captures() -> None:
    diff = compare(
        side("a1", "x = 1\n"), side("b22", "x = 2\n", requirements=[["torch"]], machine_types=["M"])
    )
    assert "-x = 1" in diff.code
    assert "+x = 2" in diff.code
    assert (diff.requirements_added, diff.requirements_removed) == (["torch"], ["numpy"])
    assert [(one.name, one.before, one.after) for one in diff.settings] == [("machine_types", "S", "M")]
    assert [(one.name, one.before, one.after) for one in diff.captures] == [("model", "2 B", "3 B")]
    same = compare(side("a1", "x"), side("a1", "x"))
    assert (same.code, same.settings, same.captures) == ("", [], [])


def test_annotations_have_fals_limits() -> None:
    assert checked_annotations({}) is None
    assert checked_annotations({"commit": "4f1c"}) == '{"commit": "4f1c"}'
    for wrong in ({str(n): "" for n in range(33)}, {"a": "x" * 17_000}):
        with pytest.raises(UsageError, match="too many"):
            checked_annotations(wrong)


def test_settings_that_do_not_fit_together_are_refused() -> None:
    live = effective_scale(ScaleSpec(), None)
    assert scaled(live, ScaleSpec(keep_alive=5), given=frozenset({"keep_alive"})).keep_alive == 5
    with pytest.raises(UsageError, match="max_concurrency 2 is less"):
        scaled(live, ScaleSpec(min_concurrency=3), given=frozenset({"min_concurrency"}))


def test_a_branch_has_the_apps_settings_but_its_own_code() -> None:
    alias = effective_scale(ScaleSpec(min_concurrency=4, max_concurrency=9, max_multiplexing=8), None)
    found = branch_scale(ScaleSpec(max_multiplexing=2), alias)
    assert (found.min_concurrency, found.max_concurrency, found.max_multiplexing) == (1, 9, 2)
