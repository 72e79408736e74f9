"""A runner that is spawned instead of forked: `python -m fal_notebook.runtime`, descriptors by `FAL_NB_RUNNER_FDS`."""

from __future__ import annotations

import os
import sys

from fal_notebook.runtime.lifecycle import live
from fal_notebook.runtime.settings import Descriptors

if __name__ == "__main__":
    sys.exit(live(Descriptors.from_json(os.environ["FAL_NB_RUNNER_FDS"])))
