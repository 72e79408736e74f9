"""Git repositories in the persistent folder. Source: fal SDK, `clone_repository`."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fal_notebook.toolkit.data import data_dir, persistent_path

__all__ = ["clone_repository"]

_SHORTEST = 8


def clone_repository(
    https_url: str,
    *,
    commit_hash: str | None = None,
    target_dir: str | Path | None = None,
    repo_name: str | None = None,
    force: bool = False,
    include_to_path: bool = False,
) -> Path:
    """Clone a repository, check a commit out and return its folder; one that is there at that commit is kept.

    Raises: ValueError for a short commit hash; subprocess.CalledProcessError when git fails.
    """
    if https_url.startswith("-") or (commit_hash or "").startswith("-"):
        raise ValueError(f"{https_url!r} at {commit_hash!r} is not a repository")
    folder = persistent_path(target_dir) if target_dir else data_dir() / ".fal" / "repos"
    local = folder / (repo_name or _name(https_url, commit_hash))
    is_right = commit_hash is not None and _commit(local, "HEAD") == _commit(local, commit_hash) is not None
    if not is_right or force:
        folder.mkdir(parents=True, exist_ok=True)
        _clone(https_url, commit_hash, local)
    if include_to_path and str(local) not in sys.path:
        sys.path.insert(0, str(local))
    return local


def _name(url: str, commit_hash: str | None) -> str:
    name = Path(url).stem
    if commit_hash is None:
        return name
    if len(commit_hash) < _SHORTEST:
        raise ValueError(f"Commit hash '{commit_hash}' is too short.")
    return f"{name}-{commit_hash[:_SHORTEST]}"


def _clone(url: str, commit_hash: str | None, local: Path) -> None:
    with TemporaryDirectory(dir=local.parent, suffix=f"{local.name}.tmp") as temporary:
        fresh = Path(temporary) / "new"
        subprocess.check_call(["git", "clone", "--recursive", "--", url, str(fresh)])
        if commit_hash:
            subprocess.check_call(["git", "checkout", commit_hash], cwd=fresh)
            subprocess.check_call(["git", "submodule", "update", "--init", "--recursive"], cwd=fresh)
        if local.exists():
            try:
                local.rename(Path(temporary) / "old")
            except FileNotFoundError:
                shutil.rmtree(local, ignore_errors=True)  # another runner is replacing it too
        try:
            fresh.rename(local)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another runner was first; it has the same.


def _commit(folder: Path, name: str) -> str | None:
    """Return the full hash of a commit, None where there is no such repository or commit."""
    if not (folder / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or None
