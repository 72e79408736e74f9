"""axe-core in a page: the violations of WCAG A and AA within an element, shadow roots included."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.stage import ROOT

__all__ = ["violations"]

SOURCE = ROOT / "labextension" / "node_modules" / "axe-core" / "axe.min.js"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa"]


def violations(page: Page, selector: str = "body") -> list[str]:
    """Return one line for each element that breaks a rule."""
    if not SOURCE.exists():
        pytest.skip("axe-core is not installed (cd labextension && npm ci)")
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(SOURCE.read_text())
    # A colour in the middle of its change is nobody's reading. A document does not tell of what moves in shadow roots.
    page.evaluate("""async () => {
        for (let frame = 0; frame < 3; frame++) {
            await new Promise(drawn => requestAnimationFrame(drawn));
            const roots = [document, ...[...document.querySelectorAll('*')].flatMap(one => one.shadowRoot ?? [])];
            const moving = roots.flatMap(root => root.getAnimations()).filter(one => one instanceof CSSTransition);
            await Promise.allSettled(moving.map(one => one.finished));
        }
    }""")
    found: dict[str, Any] = page.evaluate(
        """([selector, tags]) => axe.run(
             {include: [selector]},
             {runOnly: {type: 'tag', values: tags}, resultTypes: ['violations']})""",
        [selector, TAGS],
    )
    return [
        f"{rule['id']} at {node['target']}: {node['failureSummary']} in {node['html'][:160]}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
