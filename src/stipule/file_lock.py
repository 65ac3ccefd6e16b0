"""A lock on a folder or file, so that one process at a time writes it. A killed process leaves no lock behind."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stipule.atomic_io import write_error
from stipule.errors import RecipeError

try:
    import fcntl
except ImportError:  # Windows has no such locks: nothing is refused there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # in a folder, while a process writes it
# Locks of this process. The system's lock belongs to the process, so it does not keep a second writer in it away.
_held: set[Path] = set()


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Inside, this process is the only one that writes `path`: a folder that exists, or a file or folder to be made.

    The operating system releases the lock when the process ends, however it ends. It also works between machines that
    share a file system over NFS 4, or NFS 3 with lockd; where the file system has no locks, a warning says so. Raises
    RecipeError if another process is the writer, StipuleError if the folder cannot be written.
    """
    if fcntl is None:
        yield
        return
    lock = (path / LOCK if path.is_dir() else path.with_name(f".{path.name}.lock")).absolute()
    if lock in _held:
        raise _refusal(path, "this process")
    descriptor = _acquire(lock, path)
    _held.add(lock)
    try:
        yield
    finally:
        _held.discard(lock)
        if descriptor is not None:
            lock.unlink(missing_ok=True)  # before the lock is released: _acquire notices that the file is gone
            os.close(descriptor)


def _acquire(lock: Path, path: Path) -> int | None:
    """A descriptor of the locked file; None if the file system has no locks."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as cause:
            raise write_error(lock, cause) from cause
        try:
            # Not flock: a child that was forked inherits that lock, and may outlive a killed parent.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            owner = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            if cause.errno in (errno.EACCES, errno.EAGAIN):
                raise _refusal(path, owner or "another process") from cause
            warnings.warn(
                f"{path} cannot be locked ({cause}), so a second process that writes it is not noticed", stacklevel=4
            )
            return None
        if _is_at(descriptor, lock):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)  # its last owner removed it after we had opened it: try the new file


def _is_at(descriptor: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _refusal(path: Path, owner: str) -> RecipeError:
    return RecipeError(
        f"{path} is being written by {owner}; two writers would mix their results, so nothing was changed; wait until "
        "it ends or stop it, or give another path with --out"
    )
