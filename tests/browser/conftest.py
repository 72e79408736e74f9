"""One JupyterLab, one backend and one Chromium profile for each test process; a notebook and a page of its own for each test.

The profile keeps what JupyterLab is made of, read and compiled: a page then loads in half the time. Readiness is read from the page and the server's own API, never from a pause. Pictures go to .artifacts/browser.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.sync_api import BrowserContext, Locator, Page, ViewportSize, sync_playwright

from tests import images
from tests.browser.stage import BUNDLE, PICTURES, ROOT, SHELL, VALUES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EXTENSION = ROOT / "fal_notebook" / "labextension"

VIEWPORT: ViewportSize = {"width": 1280, "height": 900}

READY_MS = 120_000
"""An app with requirements of its own builds an image."""


def until(check: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
    """Return the first true answer of check."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {timeout_s} s")


@dataclass
class Lab:
    """A running JupyterLab with its folder."""

    url: str
    token: str
    folder: Path
    home: Path
    process: subprocess.Popen[bytes]
    env: dict[str, str] = field(repr=False, default_factory=dict)

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the Jupyter server."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            method=method,
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
            data=None if body is None else json.dumps(body).encode(),
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def notebook(self, *cells: str, name: str | None = None) -> str:
        """Write a notebook and return its name."""
        name = name or f"test-{secrets.token_hex(4)}.ipynb"
        document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
        document.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        (self.folder / name).write_text(nbformat.writes(document))
        return name

    def end_kernels(self) -> None:
        """Shut all kernels down, as a person does from the list of running kernels."""
        for session in self.api("GET", "api/sessions"):
            self.api("DELETE", f"api/sessions/{session['id']}")
        until(lambda: not self.api("GET", "api/kernels"), "kernels end")

    def backend(self) -> dict[str, Any] | None:
        """Return the record of the backend of this home."""
        found = list(Path(self.env["XDG_RUNTIME_DIR"]).glob("fal-nb/*/backend.json"))
        return json.loads(found[0].read_text()) if found else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    if not (EXTENSION / "package.json").exists():
        pytest.skip("the front end is not built (make front)")
    base = Path(tempfile.mkdtemp(prefix="fal-", dir="/tmp"))
    base.chmod(0o755)
    for name in ("run", "home", "work", "config", "data", "share/labextensions/@fal-notebook"):
        (base / name).mkdir(parents=True)
    (base / "run").chmod(0o700)
    images.link_into(base / "home")
    (base / "share/labextensions/@fal-notebook/labextension").symlink_to(EXTENSION)
    settings = base / "settings"
    settings.mkdir()
    (settings / "overrides.json").write_text(
        json.dumps(
            {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
        )
    )
    config = {"ServerApp": {"jpserver_extensions": {"fal_notebook.labserver": True, "jupyterlab": True}}}
    (base / "config" / "jupyter_server_config.json").write_text(json.dumps(config))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "FAL_"))}
    env |= {
        "FAL_NB_HOME": str(base / "home"),
        "XDG_RUNTIME_DIR": str(base / "run"),
        "JUPYTER_CONFIG_DIR": str(base / "config"),
        "JUPYTER_DATA_DIR": str(base / "data"),
        "JUPYTER_RUNTIME_DIR": str(base / "data" / "runtime"),
        "JUPYTER_PATH": str(base / "share"),
        "IPYTHONDIR": str(base / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backend")]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    port, token = _free_port(), secrets.token_hex(12)
    command = [
        *(sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}"),
        *(
            "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={token}",
            f"--ServerApp.root_dir={base / 'work'}",
        ),
        f"--LabApp.app_settings_dir={settings}",
        "--LabApp.expose_app_in_browser=True",
    ]
    log = (base / "lab.log").open("wb")
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    found = Lab(f"http://127.0.0.1:{port}/", token, base / "work", base / "home", process, env)
    try:
        until(lambda: _answers(found), f"JupyterLab starts (see {base}/lab.log)")
        yield found
    finally:
        record = found.backend()
        if record is not None:
            os.kill(int(record["pid"]), signal.SIGTERM)
        process.terminate()
        process.wait(30)
        log.close()
        if record is not None:
            until(lambda: not Path(f"/proc/{record['pid']}").exists(), "backend ends")
        if not os.environ.get("FAL_KEEP"):
            shutil.rmtree(base, ignore_errors=True)


def _answers(lab: Lab) -> bool:
    assert lab.process.poll() is None, "JupyterLab ended at its start"
    try:
        return bool(lab.api("GET", "api/status"))
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    flags = ["--disable-gpu", "--disable-dev-shm-usage"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=CHROMIUM, args=flags, viewport=VIEWPORT
        )
        yield started
        started.close()


@dataclass
class Session:
    """A page in JupyterLab."""

    lab: Lab
    page: Page
    errors: list[str]

    def open(self, name: str) -> None:
        """Open a notebook in a fresh workspace and wait until its kernel is connected."""
        self.page.goto(f"{self.lab.url}lab/tree/{name}?reset&token={self.lab.token}")
        self.page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=60_000)
        until(lambda: self._kernel(name), "the notebook has a kernel")
        self.page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=60_000)

    def _kernel(self, name: str) -> bool:
        sessions = self.lab.api("GET", "api/sessions")
        return any(one["path"] == name and one["kernel"]["connections"] for one in sessions)

    def run_all(self, *, wait: bool = True) -> None:
        """Run all cells; again where the menu's order was dropped, which happens while Lab starts."""
        prompts = self.page.locator(".jp-CodeCell .jp-InputPrompt")

        def ordered() -> bool:
            self.page.locator('.lm-MenuBar-itemLabel:text-is("Run")').click()
            self.page.locator('.lm-Menu-itemLabel:text-is("Run All Cells")').click()
            until_text = time.monotonic() + 5
            while time.monotonic() < until_text:
                if re.search(r"\[(\*|\d+)\]", prompts.first.inner_text()):
                    return True
                self.page.wait_for_timeout(50)
            return False

        until(ordered, "cells run")
        if wait:
            until(
                lambda: all(re.search(r"\[\d+\]", text) for text in prompts.all_inner_texts()),
                "cells end",
                180,
            )

    def card(self, state: str = "ready", index: int = 0) -> Locator:
        """Return the card when it is in this state."""
        card = self.page.locator(f'.fal-card[data-state="{state}"]').nth(index)
        card.wait_for(state="attached", timeout=READY_MS)
        card.scroll_into_view_if_needed()
        return card

    def saved(self, name: str) -> str:
        """Save the notebook and return its text."""
        self.page.keyboard.press("Control+s")
        self.page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')")
        return (self.lab.folder / name).read_text()

    def picture(self, name: str) -> None:
        """Keep a picture for people to look at."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(PICTURES / f"{name}.png"))


@pytest.fixture
def session(lab: Lab, browser: BrowserContext) -> Iterator[Session]:
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield Session(lab, page, errors)
    page.close()
    lab.end_kernels()


@pytest.fixture
def open_page(browser: BrowserContext) -> Iterator[Callable[[str, int], Page]]:
    if not BUNDLE.exists():
        pytest.skip("the front end is not built (make front)")
    pages = []

    def open_page(theme: str, width: int) -> Page:
        page = browser.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
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
    for page in pages:
        page.close()
