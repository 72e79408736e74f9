"""The toolkit's models: fields, behaviour and schemas of fal's."""

from __future__ import annotations

import asyncio
import io
import pickle
import subprocess
import sys
import zipfile
from base64 import b64decode, b64encode
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

import fal_notebook.toolkit as toolkit
from fal_notebook.app import RequestContext, current_request
from fal_notebook.errors import AppException
from fal_notebook.toolkit import (
    Audio,
    CompressedFile,
    FalBaseModel,
    Field,
    File,
    FileField,
    FileUploadException,
    Hidden,
    Image,
    ImageField,
    ImageSizeConstraints,
    ImageSizeField,
    ImageSizeInput,
    KVStore,
    KVStoreException,
    Video,
    VideoField,
    VideoValidationConfig,
    get_image_size,
)
from fal_notebook.toolkit.exceptions import FileUploadFallbackException
from fal_notebook.toolkit.image import ImageSize
from fal_notebook.toolkit.repository import FileData, FileRepository, Reservation, get_builtin_repository
from fal_notebook.toolkit.types import DataUri, HttpsUrl, ImageInput

PNG = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No backend: neither a runner's nor one of this user."""
    monkeypatch.setenv("FAL_NB_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("FAL_NB_UPLOAD_TOKEN", raising=False)
    monkeypatch.setenv("FAL_PERSISTENT_DIR", str(tmp_path / "data"))


class Kept(FileRepository):
    def __init__(self, error: Exception | None = None) -> None:
        self.saved: list[tuple[FileData, Any]] = []
        self.error = error

    def save(self, data: FileData, *args: Any, object_lifecycle_preference: Any = None, **_: Any) -> str:
        if self.error is not None:
            raise self.error
        self.saved.append((data, object_lifecycle_preference))
        return f"https://kept.example/{data.file_name}"

    def reserve(self, file_name: str, content_type: str, *_: Any, **__: Any) -> Reservation:
        return Reservation(
            f"https://kept.example/{file_name}", complete=lambda body: self.saved.append((body, None))
        )  # type: ignore[arg-type]


def test_a_url_is_a_file_and_other_text_is_not() -> None:
    adapter = TypeAdapter(Image)
    assert adapter.validate_python("https://a.example/b.png").url == "https://a.example/b.png"
    assert adapter.validate_python({"url": "x"}).url == "x"
    assert adapter.validate_python("data:image/png;base64,AA==").url.startswith("data:")
    for wrong in ("b.png", "/etc/passwd", "file:///etc/passwd"):
        with pytest.raises(ValidationError, match="value must be a valid URL"):
            adapter.validate_python(wrong)


def test_fields_are_fals_and_bytes_never_leave() -> None:
    made = File.from_bytes(b"abc", content_type="text/plain", file_name="a.txt", repository="in_memory")
    assert made.model_dump() == {
        "url": "data:text/plain;base64,YWJj",
        "content_type": "text/plain",
        "file_name": "a.txt",
        "file_size": 3,
    }
    assert made.as_bytes() == b"abc"
    assert "abc" not in repr(made)
    with pytest.raises(ValueError, match="has not been downloaded"):
        File(url="https://a.example/b").as_bytes()


def test_names_and_types_are_guessed() -> None:
    assert FileData(b"", None, "a.png").content_type == "image/png"
    assert FileData(b"", "image/webp").file_name.endswith(".webp")
    assert FileData(b"").content_type == "application/octet-stream"
    image = Image.from_bytes(PNG, "png", ImageSize(width=1, height=1), repository="in_memory")
    assert (image.content_type, image.width, image.height) == ("image/png", 1, 1)
    assert (image.file_name or "").endswith(".png")


def test_a_path_is_read_and_a_missing_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    made = asyncio.run(Video.from_path_async(path, content_type="video/mp4", repository="in_memory"))
    assert (type(made), made.file_name, made.file_size) == (Video, "a.txt", 3)
    with pytest.raises(FileNotFoundError):
        File.from_path(tmp_path / "none")


def test_without_a_backend_small_files_become_data_uris_and_large_ones_fail(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert File.from_bytes(b"abc").url.startswith("data:application/octet-stream;base64,")
    assert "Failed to save to repository fal_v3" in capsys.readouterr().out
    with pytest.raises(FileUploadException, match="No backend"):
        File.from_bytes(bytes(11 * 1024 * 1024))
    with pytest.raises(FileUploadException):
        File.from_bytes(b"abc", fallback_repository=None)


def test_fallbacks_are_tried_in_order_and_the_error_names_each_but_shows_none() -> None:
    good, bad = Kept(), Kept(RuntimeError("no"))
    assert File.from_bytes(b"x", file_name="f", repository=bad, fallback_repository=[bad, good]).url.endswith(
        "/f"
    )
    with pytest.raises(
        FileUploadFallbackException, match=r"all 2 repositories. Kept: RuntimeError: no; Kept"
    ):
        File.from_bytes(b"x", repository=bad, fallback_repository=[bad])
    final = FileUploadException("stop")
    final.falls_back = False  # type: ignore[attr-defined]
    with pytest.raises(FileUploadException, match="stop"):
        File.from_bytes(b"x", repository=Kept(final), fallback_repository=[good])
    for name in ("gcp_storage", "r2", "nothing"):
        with pytest.raises(ValueError, match=name):
            get_builtin_repository(name)  # type: ignore[arg-type]


def test_the_callers_wish_for_a_lifetime_reaches_the_repository() -> None:
    kept, wish = Kept(), {"expiration_duration_seconds": 60}
    token = current_request.set(RequestContext(lifecycle_preference=wish))
    try:
        File.from_bytes(b"x", repository=kept)
    finally:
        current_request.reset(token)
    File.from_bytes(b"x", repository=kept, save_kwargs={"object_lifecycle_preference": {"a": 1}})
    request = RequestContext(headers={"x-fal-object-lifecycle-preference": '{"b": 2}'})
    File.from_bytes(b"x", repository=kept, request=request)
    assert [preference for _, preference in kept.saved] == [wish, {"a": 1}, {"b": 2}]
    policy = RequestContext(headers={"x-app-fal-upload-policy": "{}"})
    with pytest.raises(AppException, match="not supported"):
        File.from_bytes(b"x", repository=kept, request=policy)


def test_a_url_is_reserved_before_the_bytes_exist(tmp_path: Path) -> None:
    kept = Kept()
    pending = File.reserve(file_name="a.txt", content_type="text/plain", repository=kept)
    assert pending.url == "https://kept.example/a.txt"
    done = pending.complete(b"abc")
    assert (done.url, done.file_size) == (pending.url, 3)
    path = tmp_path / "a.txt"
    path.write_bytes(b"abcd")
    assert pending.complete(path).file_size == 4
    pending.abort()


def test_save_never_overwrites_unasked(tmp_path: Path) -> None:
    file, target = File(url="data:,hello"), tmp_path / "sub" / "a.txt"
    assert file.save(target).read_text() == "hello"
    with pytest.raises(FileExistsError):
        file.save(target)
    assert asyncio.run(file.save_async(target, overwrite=True)) == target
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_an_archive_yields_what_is_in_it_and_stays_in_its_folder() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", "A")
        archive.writestr("b/c.txt", "C")
        archive.writestr("../out.txt", "no")
    file = CompressedFile(url=f"data:application/zip;base64,{b64encode(packed.getvalue()).decode()}")
    assert [path.name for path in file] == ["a.txt", "b", "out.txt"]
    assert [path.read_text() for path in file.glob("**/c.txt")] == ["C"]
    folder = Path(file.extract_dir or "")
    assert not (folder.parent / "out.txt").exists()
    assert "extract_dir" not in file.model_dump()
    del file
    assert not folder.exists()


def test_presets_of_sizes() -> None:
    sizes = {
        name: get_image_size(name)
        for name in (
            "square_hd",
            "square",
            "portrait_4_3",
            "portrait_16_9",
            "landscape_4_3",
            "landscape_16_9",
        )
    }  # type: ignore[arg-type]
    assert [(size.width, size.height) for size in sizes.values()] == [
        (1024, 1024),
        (512, 512),
        (768, 1024),
        (576, 1024),
        (1024, 768),
        (1024, 576),
    ]
    assert get_image_size(ImageSize(width=3, height=4)).height == 4
    adapter: TypeAdapter[Any] = TypeAdapter(ImageSizeInput)
    assert adapter.validate_python({"width": 3, "height": 4}).width == 3
    with pytest.raises(ValidationError):
        adapter.validate_python("huge")
    with pytest.raises(TypeError):
        get_image_size("huge")  # type: ignore[arg-type]


def test_schemas_say_what_a_form_shall_show() -> None:
    class In(FalBaseModel):
        FIELD_ORDERS: ClassVar[list[str]] = ["prompt"]

        image_url: str = ImageField(description="i")
        video: str = VideoField(constraints=VideoValidationConfig(max_duration=5), ui={"important": True})
        other: str = FileField(json_schema_extra={"ui": {"field": "mask"}, "a": 1})
        called: str = FileField(json_schema_extra=lambda schema: schema.update(b=2))
        size: ImageSizeInput = ImageSizeField("square", constraints=ImageSizeConstraints(max_width=9))
        secret: bool = Hidden(Field(default=False))
        prompt: str = "p"
        files: list[File] = Field(default_factory=list)
        sound: Audio | None = None

    schema = In.model_json_schema()
    fields = schema["properties"]
    assert next(iter(fields)) == "prompt"
    assert fields["image_url"]["ui"] == {"field": "image"}
    assert fields["video"]["ui"] == {"field": "video", "important": True}
    assert fields["video"]["x-fal"] == {"max_duration": 5}
    assert (fields["other"]["ui"], fields["other"]["a"]) == ({"field": "mask"}, 1)
    assert (fields["called"]["ui"], fields["called"]["b"]) == ({"field": "file"}, 2)
    assert fields["size"]["x-fal"] == {"max_width": 9}
    assert fields["secret"]["ui"] == {"hidden": True}
    assert schema["$defs"]["File"]["ui"] == {"field": "file"}
    assert schema["$defs"]["Audio"]["ui"] == {"field": "audio"}
    with pytest.raises(ValueError, match="must have a default"):
        Hidden(Field())
    with pytest.raises(TypeError):
        Hidden(3)
    with pytest.raises(ValueError, match="must not exceed"):
        VideoValidationConfig(min_fps=3, max_fps=2)
    with pytest.raises(ValueError, match="together"):
        ImageSizeConstraints(min_aspect_ratio=1)


def test_url_types_validate_and_open() -> None:
    class In(BaseModel):
        image: ImageInput

    assert isinstance(In(image="data:text/plain,hello").image, str)  # type: ignore[arg-type]
    with TypeAdapter(DataUri).validate_python(" data:text/plain,hello ").as_temp_file() as path:
        assert path.read_text() == "hello"
    for wrong in ("http://a.example/x", "https://127.0.0.1/x", "https://localhost/"):
        with pytest.raises(ValidationError):
            TypeAdapter(HttpsUrl).validate_python(wrong)
    assert TypeAdapter(DataUri).json_schema()["format"] == "data-uri"


def test_folders_of_fal_mean_the_folder_of_where_they_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FAL_PERSISTENT_DIR")
    written = pickle.dumps(
        {"below": toolkit.FAL_PERSISTENT_DIR / "models" / "a", "elsewhere": toolkit.data_dir}
    )
    assert str(toolkit.FAL_PERSISTENT_DIR) == "/data"
    monkeypatch.setenv("FAL_PERSISTENT_DIR", str(tmp_path))
    read = pickle.loads(written)["below"]
    assert str(read) == str(tmp_path / "models" / "a")
    assert isinstance(read, PurePosixPath)
    assert toolkit.download_file("data:,x", "/data/in").parent == tmp_path / "in"
    assert toolkit.download_file("data:,x", "in").parent == tmp_path / "in"


def test_values_are_kept_for_all_runners_of_the_account(tmp_path: Path) -> None:
    store = KVStore("a")
    assert store.get("k") is None
    store.set("k", "v", ttl=60)
    KVStore("b").set("k", "other")
    assert (KVStore("a").get("k"), KVStore("b").get("k")) == ("v", "other")
    store.set("k", "w")
    store.delete("k")
    store.delete("k")
    assert store.get("k") is None
    for ttl in (59, 2_592_001):
        with pytest.raises(KVStoreException):
            store.set("k", "v", ttl=ttl)


def test_pillow_is_asked_for_by_name_where_it_is_missing() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError:
        for act in (lambda: Image(url="data:,x").to_pil(), lambda: Image.from_pil(object())):
            with pytest.raises(ImportError, match=r'Add "pillow" to the requirements'):
                act()
    else:
        made = Image.from_bytes(PNG, "png", repository="in_memory")
        assert Image.from_pil(made.to_pil(), repository="in_memory").width == 1


def git(*args: str, cwd: Path) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    done = subprocess.run(["git", *identity, *args], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_repository_is_cloned_once_at_a_commit(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    git("init", "-q", cwd=source)
    (source / "cloned_module.py").write_text("x = 1")
    git("add", ".", cwd=source)
    git("commit", "-qm", "one", cwd=source)
    commit = git("rev-parse", "HEAD", cwd=source)
    first = toolkit.clone_repository(str(source), commit_hash=commit, include_to_path=True)
    try:
        assert first == tmp_path / "data" / ".fal" / "repos" / f"source-{commit[:8]}"
        (first / "mark").touch()
        assert toolkit.clone_repository(str(source), commit_hash=commit) == first
        assert (first / "mark").exists()
        toolkit.clone_repository(str(source), commit_hash=commit, force=True)
        assert not (first / "mark").exists()
        assert str(first) in sys.path
    finally:
        sys.path.remove(str(first))
    with pytest.raises(ValueError, match="too short"):
        toolkit.clone_repository(str(source), commit_hash="abc")
    with pytest.raises(ValueError, match="not a repository"):
        toolkit.clone_repository("--upload-pack=touch x")
