"""Atomic writes: a file or folder is written under a temporary name and then renamed, so it is never half-written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stipule.errors import RecipeError, StipuleError


def require_unused(path: Path) -> None:
    """Raises RecipeError if `path` is a file or a folder with content; existing results are never overwritten."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RecipeError(f"{path} already exists and was not changed; give another path with --out")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path and moves the result to `path`; on failure `path` stays as it was.

    Raises StipuleError if the disk is full, read-only or over its quota.
    """
    temporary = path.with_name(f".{path.name}.writing")
    with _reported(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Like `replace_file`, for a folder. An existing folder is replaced."""
    temporary = path.with_name(f".{path.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    with _reported(path, temporary):
        temporary.mkdir(parents=True)
        write(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it. Raises StipuleError if it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise write_error(path, cause) from cause


def append_text(path: Path, text: str) -> None:
    """Adds text to a file. Raises StipuleError if the disk is full, read-only or over its quota."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as cause:
        raise write_error(path, cause) from cause


@contextmanager
def _reported(path: Path, temporary: Path) -> Iterator[None]:
    """Removes what an error leaves of `temporary`, and raises StipuleError for an error of the disk."""
    try:
        yield
    except BaseException as cause:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if is_disk_error(cause):
            raise write_error(path, cause) from cause
        raise


def is_disk_error(cause: BaseException) -> bool:
    """Whether the disk caused an error: an OSError, or an exception of a Rust library with its message."""
    return isinstance(cause, OSError) or "os error" in str(cause) or "I/O error" in str(cause)


def write_error(path: Path, cause: BaseException) -> StipuleError:
    """The error for a file that could not be written."""
    return StipuleError(
        f"could not write {path}: {cause}; existing files were not changed; free some space or "
        "choose another --out, then continue with --resume"
    )


def _flush(file: Path) -> None:
    with file.open("rb") as handle:  # the bytes must be on the disk before the rename
        os.fsync(handle.fileno())
