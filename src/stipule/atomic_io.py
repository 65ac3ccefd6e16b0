"""Writing so that a file or folder is whole or not there: a temporary name beside it, then one rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from stipule.errors import RecipeError, StipuleError


def require_unused(path: Path) -> None:
    """Raises RecipeError if there is anything at `path`: what was made before is never overwritten."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RecipeError(f"{path} already exists and was left as it is; give another place with --out")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path and moves the result to `path`; on failure `path` stays as it was.

    Raises StipuleError if the disk refuses (full, read-only, quota).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as cause:
        temporary.unlink(missing_ok=True)
        raise write_error(path, cause) from cause


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Like `replace_file`, for a folder that does not exist yet or is to be replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        write(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except Exception as cause:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_disk_error(cause):
            raise write_error(path, cause) from cause
        raise


def is_disk_error(cause: BaseException) -> bool:
    """Whether an error is the disk's: an OSError, or the same told in words by a library written in Rust."""
    return isinstance(cause, OSError) or "os error" in str(cause) or "I/O error" in str(cause)


def write_error(path: Path, cause: BaseException) -> StipuleError:
    """The message for a disk that did not take a file."""
    return StipuleError(
        f"could not write {path}: {cause}; nothing that was there has changed; free some space or "
        "choose another --out, then go on with --resume"
    )


def _flush(file: Path) -> None:
    with file.open("rb") as handle:  # a rename must not reach the disk before the bytes do
        os.fsync(handle.fileno())
