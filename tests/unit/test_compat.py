from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.unit.cells import REPOSITORY


def python(program: str, *, path: str = "") -> str:
    environment = {"PYTHONPATH": f"{path}:{REPOSITORY}" if path else str(REPOSITORY), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_fal_is_this_package_with_one_identity() -> None:
    program = """
from fal_notebook import compat
compat.install(); compat.install()
import fal, fal_notebook, fal.app, fal.exceptions, fal.container, sys
from fal import App, endpoint
from fal.exceptions import AppException, FieldException, RequestCancelledException
from fal.ref import get_current_app
assert fal is fal_notebook and App is fal_notebook.App and fal.app.App is App
assert AppException is fal_notebook.AppException and fal.container.ContainerImage is fal.ContainerImage
assert fal_notebook.__spec__.name == "fal_notebook" and fal_notebook.__name__ == "fal_notebook"
assert sys.modules["fal.app"] is sys.modules["fal_notebook.app"]
assert fal.exceptions.AppException is AppException
print(sum(type(f).__module__ == "fal_notebook.compat" for f in sys.meta_path))
"""
    assert python(program) == "1"


def test_toolkit_is_found_under_every_name_of_fal_and_other_names_are_missing() -> None:
    program = """
from fal_notebook import compat
compat.install()
import fal
from fal.toolkit import Image, File, Audio, Video, CompressedFile, KVStore, download_file, clone_repository
from fal.toolkit import FAL_PERSISTENT_DIR, FAL_MODEL_WEIGHTS_DIR, ImageSizeInput, FalBaseModel, Field, Hidden
import fal.toolkit.image.image, fal.toolkit.file.file, fal.toolkit.file.types, fal.toolkit.utils.download_utils
from fal.toolkit.types import ImageInput
from fal.toolkit.utils import download_model_weights
from fal.toolkit.utils.endpoint import cancel_on_disconnect
from fal.toolkit.pydantic import FalBaseModel as Same
from fal.toolkit.exceptions import FileUploadException
import fal_notebook.toolkit
assert fal.toolkit is fal_notebook.toolkit and Image is fal_notebook.toolkit.image.Image and Same is FalBaseModel
assert str(FAL_PERSISTENT_DIR) == "/data" and str(FAL_MODEL_WEIGHTS_DIR) == "/data/.fal/model_weights"
for statement in ("import fal.nothing", "import fal.toolkit.nothing", "import fal.toolkit.image.nsfw_filter"):
    try:
        exec(statement)
    except ImportError as error:
        print(type(error).__name__, error)
"""
    lines = python(program).splitlines()
    assert [line.split()[0] for line in lines] == ["ModuleNotFoundError"] * 3


def test_toolkit_is_an_attribute_of_the_package_without_an_import_of_it() -> None:
    program = """
from fal_notebook import compat
compat.install()
import fal
print(fal.toolkit.Image.__name__)
"""
    assert python(program) == "Image"


def test_real_package_wins_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "fal").mkdir()
    (tmp_path / "fal" / "__init__.py").write_text("REAL = True\n")
    program = "from fal_notebook import compat\ncompat.install()\nimport fal\nprint(fal.REAL)"
    assert python(program, path=str(tmp_path)) == "True"


def test_folder_called_fal_is_not_the_package(tmp_path: Path) -> None:
    (tmp_path / "fal").mkdir()
    program = "from fal_notebook import compat\ncompat.install()\nimport fal\nprint(fal.__name__)"
    assert python(program, path=str(tmp_path)) == "fal_notebook"
