"""Documents say what is there: reference as generated, links that lead somewhere, rooms that exist."""

from __future__ import annotations

import re

from tests.docs.reference import PAGE, ROOT, text


def test_the_reference_is_as_generated() -> None:
    assert PAGE.read_text() == text(), "run `make generate`"


def test_links_between_documents_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not dead


def test_the_tour_names_every_module() -> None:
    tour = (ROOT / "docs" / "tour.md").read_text()
    modules = [
        path
        for folder in ("fal_notebook", "backend/fal_backend")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and "versions" not in path.parts
    ]
    missing = [str(p.relative_to(ROOT)) for p in modules if p.name not in tour]
    assert not missing
