"""Why a runner did not become ready, said with the user's own lines.

Rules: frames of the runtime and of the import machinery before the user's first are left out; the text of cells
comes from the bundle's manifest, because a runner has no notebook to read.
"""

from __future__ import annotations

import ast
import linecache
import os
import re
import traceback
from pathlib import Path
from types import FrameType, TracebackType

from fal_notebook.errors import BundleError, FalError, RunnerError, Where
from fal_notebook.wire import BundleManifest, CellRef, SourceText

__all__ = ["explain", "learn_sources"]

_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (compared with co_filename, a string)
_SENTENCES = {
    "check": "The runner's environment does not match the bundle",
    "thaw": "The App could not be loaded on the runner",
    "setup": "setup() failed",
    "server": "The web server did not open",
}
_DISTRIBUTIONS = {
    "Crypto": "pycryptodome",
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Packages whose import name is not what pip calls them."""


def learn_sources(manifest: BundleManifest, code: type | None = None) -> None:
    """Make tracebacks show the lines of the bundle's cells.

    code is the thawed class: where the manifest has only the class as written, its lines are put at the numbers that
    the class's own functions name.
    """
    for source in manifest.sources:
        _remember(source)
    if code is not None and manifest.source:
        placed = _place(manifest.source, code)
        if placed and not linecache.getlines(placed.filename):
            _remember(placed)


def _remember(source: SourceText) -> None:
    lines = source.text.splitlines(keepends=True)
    linecache.cache[source.filename] = (len(source.text), None, lines, source.filename)


def _place(text: str, code: type) -> SourceText | None:
    """Return the class's text moved down to the line numbers of its compiled functions."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            compiled = getattr(getattr(code, node.name, None), "__code__", None)
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            if compiled is not None and compiled.co_firstlineno >= first:
                shift = compiled.co_firstlineno - first
                return SourceText(filename=compiled.co_filename, text="\n" * shift + text)
    return None


_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")


def explain(error: BaseException, phase: str, manifest: BundleManifest | None) -> FalError:
    """Turn what was raised in a phase (check, thaw, setup, server) into an error that a user can act on."""
    if isinstance(error, FalError):
        return error
    shown = _own_part(error.__traceback__)
    text = "".join(traceback.format_exception(type(error), error, shown))
    summary = traceback.format_exception_only(type(error), error)[-1].strip()
    kind = BundleError if phase in ("check", "thaw") else RunnerError
    code = {"check": "bundle.mismatch", "thaw": "bundle.unloadable"}.get(phase, f"runner.{phase}_failed")
    where = _where(error.__traceback__, manifest)
    return kind(
        f"{_SENTENCES.get(phase, phase)}: {summary}",
        code=code,
        fix=_fix(error, where),
        where=where,
        traceback=text,
        details={"phase": phase, "exception": type(error).__name__},
    )


def _fix(error: BaseException, where: Where | None) -> str:
    """Say what the runner lacks and the one thing to do; without a guess, where to look."""
    match error:
        case ModuleNotFoundError(name=str(name)) if name:
            top = name.partition(".")[0]
            return f'Add "{_DISTRIBUTIONS.get(top, top)}" to `requirements`.'
        case FileNotFoundError(filename=name):
            missing = f"`{os.fspath(name)}`" if isinstance(name, (str, os.PathLike)) else "its files"
            return (
                f"A runner does not see your folders: read {missing} outside the class, in a cell or at the file's top,"
                " into a variable that the App uses."
            )
        case KeyError(args=(str(name),), __traceback__=trace) if _ends_in(trace, os.__file__):
            return f"A runner has none of your environment variables: `fal-nb secrets set {name}` gives it this one."
        case _ if where is not None and str(where):
            return f"Read the traceback; the failing line is in {where}."
        case _:
            return "Read the traceback; its last line says what failed."


def _ends_in(trace: TracebackType | None, filename: str) -> bool:
    """True when the innermost frame is in a file (`os.environ` raises its own KeyError)."""
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    return bool(frames) and frames[-1].f_code.co_filename in (filename, f"<frozen {Path(filename).stem}>")


def _own_part(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback from its first frame outside the runtime, or all of it when there is none."""
    part = trace
    while part is not None and _is_machinery(part.tb_frame):
        part = part.tb_next
    return part or trace


def _is_machinery(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return name.startswith((_HERE, "<frozen")) or module in ("asyncio", "uvloop", "contextlib")


def _where(trace: TracebackType | None, manifest: BundleManifest | None) -> Where | None:
    """Return the last line of the user's own text that the error passed through.

    What came along out of an installed package, such as the `open` that IPython puts into a notebook, is not theirs.
    """
    if manifest is None:
        return None
    cells: dict[str, CellRef | None] = {source.filename: source.cell for source in manifest.sources}
    found = None
    for frame, line in traceback.walk_tb(trace):
        name = frame.f_code.co_filename
        if name in cells and not _INSTALLED.search(name):
            found = _place_of(name, line, frame.f_code.co_name, cells[name])
    return found


def _place_of(filename: str, line: int, function: str, cell: CellRef | None) -> Where:
    if cell is not None and cell.execution_count is not None:
        return Where(cell=cell.execution_count, cell_id=cell.cell_id, line=line, name=function)
    return Where(file=filename, line=line, name=function)
