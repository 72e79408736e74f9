"""A part of a GPU: whoever imports torch, and whenever, it is held to its part before it touches CUDA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TORCH = """
class cuda:
    queued, held = [], []
    _lazy_call = staticmethod(lambda call: cuda.queued.append(call))
    set_per_process_memory_fraction = staticmethod(lambda part: cuda.held.append(part))
"""


@pytest.mark.parametrize("first", ["fraction.limit(25); import torch", "import torch; fraction.limit(25)"])
def test_torch_is_held_to_its_part_when_it_first_uses_cuda(tmp_path: Path, first: str) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    code = f"""
import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parents[2])!r}]
from fal_notebook.runtime import fraction
{first}
assert not torch.cuda.held, "nothing of CUDA is touched by the import"
torch.cuda.queued[0]()
assert torch.cuda.held == [0.25]
assert not [one for one in sys.meta_path if type(one).__name__ == "_Finder"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_nothing_happens(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
from fal_notebook.runtime import fraction
fraction.limit(50)
sys.modules["torch"] = None
try:
    import torch
except ImportError:
    print("not here")
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "not here"
