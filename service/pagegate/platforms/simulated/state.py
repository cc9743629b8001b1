"""The files of a simulated root: private, written whole or not at all, one writer at a time."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pagegate.errors import PlatformError

_LOCK = ".lock"


def make_private_directory(directory: Path) -> None:
    """Creates `directory` with mode 0700, or checks that nobody else can get at what is there already."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            _require_private(directory)
    except OSError as error:
        raise PlatformError(
            "SIMULATED_STATE_UNUSABLE",
            f"cannot use {directory} for the simulated platform's keys: {error}; give a directory that can be written",
        ) from error


def _require_private(directory: Path) -> None:
    found = directory.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{directory} is not a directory")
    if found.st_uid != os.geteuid():
        raise PlatformError(
            "SIMULATED_STATE_NOT_PRIVATE",
            f"{directory} belongs to user id {found.st_uid}, this process runs as {os.geteuid()}; "
            "give a directory of your own",
        )
    if not stat.S_IMODE(found.st_mode) & 0o077:
        return
    if any(directory.iterdir()):
        raise PlatformError(
            "SIMULATED_STATE_NOT_PRIVATE",
            f"{directory} has mode {stat.S_IMODE(found.st_mode):04o}, others can read the keys in it; "
            f"run: chmod 700 {directory}",
        )
    directory.chmod(0o700)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the directory's lock, so that two processes that start at once make one root, not two."""
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file (mode 0600) so that a reader sees the old content or the new, after a crash too."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
