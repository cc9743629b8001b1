"""What holds a region's pages. A generation is immutable once a snapshot is committed; a new one is
staged beside it and switched in atomically."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from pagegate.errors import TransferError

_GENERATION_NAME = re.compile(r"gen-(\d{12})\.pages")
_TABLE_NAME = re.compile(r"gen-(\d{12})\.macs(\.new)?")

Write = Callable[[int], None]
"""Writes a file's content to a descriptor."""


class Backing(Protocol):
    """Where generations live. File descriptors returned belong to the caller."""

    @property
    def generation(self) -> int:
        """Number of the committed generation; 0 before the first commit."""
        ...

    @property
    def durable(self) -> bool:
        """True when generations, and their tables of page MACs, outlive the process."""
        ...

    def open_table(self) -> int | None:
        """A descriptor of the committed generation's table of page MACs, readable and writable; None: it has none."""
        ...

    def write_table(self, write: Write, *, staged: bool) -> None:
        """Makes the table of the staged generation, or another for the committed one. Atomic and durable."""
        ...

    def open_current(self) -> int:
        """A descriptor of the committed generation, readable and writable."""
        ...

    def stage(self, *, copy_current: bool) -> int:
        """A descriptor of a new, invisible generation: zero pages, or a copy of the committed one."""
        ...

    def commit(self) -> int:
        """Makes the staged generation the committed one, as durable as the backing is. Returns its number."""
        ...

    def discard(self) -> None:
        """Drops the staged generation, if any."""
        ...

    def touch(self) -> int:
        """Counts a change made in place to the committed generation; durable as commit is."""
        ...

    def close(self) -> None:
        """Gives up what is held; a staged generation is lost."""
        ...


def _copy(source: int, target: int, size: int) -> None:
    """Copies whole generations; the file system shares extents where it can."""
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(source, target, size - done, done, done)
        except OSError:
            chunk = os.pread(source, min(1 << 20, size - done), done)
            count = os.pwrite(target, chunk, done) if chunk else 0
        if count == 0:
            raise TransferError("REGION_IO", f"copying a generation stopped at byte {done} of {size}")
        done += count


class MemfdBacking:
    """Generations in anonymous memory: gone with the process."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._generation = 0
        self._current = self._new()
        self._staged: int | None = None

    def _new(self) -> int:
        fd = os.memfd_create(f"pagegate:{self._name}", os.MFD_CLOEXEC)
        os.ftruncate(fd, self._size)
        return fd

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def durable(self) -> bool:
        return False

    def open_table(self) -> int | None:
        return None

    def write_table(self, write: Write, *, staged: bool) -> None:
        raise TransferError("REGION_IO", f"region {self._name} is in memory: its page MACs are not kept")

    def open_current(self) -> int:
        return os.dup(self._current)

    def stage(self, *, copy_current: bool) -> int:
        self.discard()
        self._staged = self._new()
        if copy_current:
            _copy(self._current, self._staged, self._size)
        return os.dup(self._staged)

    def commit(self) -> int:
        if self._staged is None:
            raise TransferError("NOTHING_STAGED", f"region {self._name} has no staged generation to commit")
        os.close(self._current)
        self._current, self._staged = self._staged, None
        self._generation += 1
        return self._generation

    def discard(self) -> None:
        if self._staged is not None:
            os.close(self._staged)
            self._staged = None

    def touch(self) -> int:
        self._generation += 1
        return self._generation

    def close(self) -> None:
        self.discard()
        if self._current >= 0:
            os.close(self._current)
            self._current = -1


class FileBacking:
    """Generations as files of one directory; `current` is a symbolic link that a commit renames over.

    The link's target names the generation, so content and number switch together, and after a
    crash exactly one committed generation is there. Works the same on /dev/shm.
    """

    def __init__(self, name: str, directory: Path, size: int) -> None:
        self._name = name
        self._directory = directory
        self._size = size
        self._staging = directory / "staging.pages"
        self._staging_table = directory / "staging.macs"
        self._link = directory / "current"
        with self._io("open"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.discard()
            if not self._link.is_symlink():
                self._switch(self._create(self._path(0)), 0)
            self._generation = self._read_link()
            self._check_size()
            self._sweep()

    @contextlib.contextmanager
    def _io(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TransferError(
                "REGION_IO", f"cannot {what} region {self._name} in {self._directory}: {error.strerror or error}"
            ) from error

    def _path(self, generation: int) -> Path:
        return self._directory / f"gen-{generation:012d}.pages"

    def _table(self, generation: int) -> Path:
        return self._directory / f"gen-{generation:012d}.macs"

    def _create(self, path: Path) -> Path:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, self._size)
            os.fsync(fd)
        finally:
            os.close(fd)
        return path

    def _read_link(self) -> int:
        match = _GENERATION_NAME.fullmatch(str(self._link.readlink()))
        if match is None:
            raise TransferError("REGION_IO", f"{self._link} does not point to a generation; restore the directory")
        return int(match[1])

    def _check_size(self) -> None:
        size = self._path(self._generation).stat().st_size
        if size != self._size:
            raise TransferError(
                "REGION_SIZE",
                f"region {self._name} is configured for {self._size} bytes but {self._path(self._generation)} has {size}. "
                "Configure the size it was made with, or choose another directory.",
            )

    def _sweep(self) -> None:
        for path in self._directory.iterdir():
            match = _GENERATION_NAME.fullmatch(path.name) or _TABLE_NAME.fullmatch(path.name)
            stale = match is not None and (int(match[1]) != self._generation or path.suffix == ".new")
            if stale or path.name.startswith("current."):
                path.unlink()

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _switch(self, path: Path, generation: int) -> None:
        """The commit point: one rename, between two directory syncs."""
        self._sync_directory()
        link = self._directory / f"current.{generation}"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.replace(self._link)
        self._sync_directory()
        self._generation = generation

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def durable(self) -> bool:
        return True

    def open_table(self) -> int | None:
        with self._io("open the page MACs of"):
            try:
                return os.open(self._table(self._generation), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return None

    def write_table(self, write: Write, *, staged: bool) -> None:
        with self._io("write the page MACs of"):
            table = self._table(self._generation)
            path = self._staging_table if staged else table.with_suffix(".macs.new")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                write(fd)
                os.fsync(fd)
            finally:
                os.close(fd)
            if not staged:
                path.replace(table)
                self._sync_directory()

    def open_current(self) -> int:
        with self._io("open"):
            return os.open(self._path(self._generation), os.O_RDWR | os.O_CLOEXEC)

    def stage(self, *, copy_current: bool) -> int:
        self.discard()
        with self._io("stage"):
            fd = os.open(self._staging, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, self._size)
                if copy_current:
                    current = self.open_current()
                    try:
                        _copy(current, fd, self._size)
                    finally:
                        os.close(current)
            except BaseException:
                os.close(fd)
                raise
            return fd

    def commit(self) -> int:
        with self._io("commit"):
            if not self._staging.exists():
                raise TransferError("NOTHING_STAGED", f"region {self._name} has no staged generation to commit")
            fd = os.open(self._staging, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            former = self._generation
            path = self._path(former + 1)
            self._staging.rename(path)
            with contextlib.suppress(FileNotFoundError):
                self._staging_table.rename(self._table(former + 1))
            self._switch(path, former + 1)
            self._drop(former)
        return self._generation

    def _drop(self, generation: int) -> None:
        self._path(generation).unlink(missing_ok=True)
        self._table(generation).unlink(missing_ok=True)

    def discard(self) -> None:
        with self._io("discard the staged generation of"):
            self._staging.unlink(missing_ok=True)
            self._staging_table.unlink(missing_ok=True)

    def touch(self) -> int:
        """The same files under the next generation's names, the data synced first."""
        with self._io("commit a page of"):
            former = self._generation
            fd = os.open(self._path(former), os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
            self._drop(former + 1)
            self._path(former + 1).hardlink_to(self._path(former))
            with contextlib.suppress(FileNotFoundError):
                self._table(former + 1).hardlink_to(self._table(former))
            self._switch(self._path(former + 1), former + 1)
            self._drop(former)
        return self._generation

    def close(self) -> None:
        self.discard()
