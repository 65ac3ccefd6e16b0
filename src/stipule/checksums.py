"""SHA-256 of the files of a folder: a file that has changed since it was written is named when it is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from stipule.errors import CheckpointError

CHECKSUMS = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all files in a folder and its subfolders to `checksums.json` there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): file_checksum(path) for path in files}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n")


def verify_checksums(folder: Path, below: str = "") -> None:
    """Raises CheckpointError, with the name of the file, if one has changed or is missing.

    `below`: only files whose relative path begins with it. A folder without `checksums.json` is not checked: an earlier
    version wrote it.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return
    try:
        sums = json.loads(path.read_text())
        wanted = {str(name): str(checksum) for name, checksum in sums.items() if name.startswith(below)}
    except (OSError, ValueError, AttributeError) as cause:
        raise damaged(path, str(cause)) from cause
    for name, checksum in wanted.items():
        file = folder / name
        if not file.is_file():
            raise damaged(file, f"it is missing, but {path} lists it")
        if file_checksum(file) != checksum:
            raise damaged(file, f"its content has changed since it was written (or {path} has)")


def file_checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(file: Path, reason: str) -> CheckpointError:
    """The error for a damaged file of a checkpoint."""
    return CheckpointError(
        f"{file} is damaged: {reason}; restore it from a copy, or remove this checkpoint to resume from the one before"
    )
