"""What a client sends: pages from a buffer, a file, a stream or another process's memory.

Most sources hand their bytes over; a file's are read by the bridge, so that its plaintext is in no memory of ours.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from typing_extensions import Buffer

import enclave_bridge as eb
from pagegate.errors import TransferError
from pagegate.transfer.faults import transfer_faults


class Source(Protocol):
    """Whole pages at known offsets from the start of a region window."""

    @property
    def pages(self) -> int:
        """How many pages."""
        ...

    def read(self, first: int, count: int) -> Buffer:
        """`count` pages from page `first`: count * 4096 bytes, valid until the next read."""
        ...


class BufferSource:
    """Pages of a buffer of the caller, without a copy. A last partial page is padded with zeros."""

    def __init__(self, buffer: Buffer) -> None:
        self._view = memoryview(buffer).cast("B")
        if not len(self._view):
            raise TransferError("SOURCE_EMPTY", "there is nothing to send: the source is empty")

    @property
    def pages(self) -> int:
        return -(-len(self._view) // eb.PAGE_SIZE)

    def read(self, first: int, count: int) -> Buffer:
        part = self._view[first * eb.PAGE_SIZE : (first + count) * eb.PAGE_SIZE]
        missing = count * eb.PAGE_SIZE - len(part)
        return part if not missing else bytes(part) + bytes(missing)


class FileSource:
    """Pages of an open file as long as it is now. A last partial page is padded with zeros."""

    def __init__(self, fd: int, length: int) -> None:
        self._fd = fd
        self._length = length

    @property
    def pages(self) -> int:
        """How many pages."""
        return -(-self._length // eb.PAGE_SIZE)

    def open(self, bridge: eb.Bridge) -> eb.Source:
        """For that bridge to read; the caller closes it. Raises TransferError SOURCE_UNREADABLE."""
        with transfer_faults():
            return bridge.source(self._fd, length=self._length)


@contextmanager
def file_source(path: Path) -> Iterator[FileSource]:
    """Pages of a file. Raises TransferError SOURCE_UNREADABLE, SOURCE_EMPTY."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe's open must not wait for a writer
    except OSError as error:
        raise TransferError("SOURCE_UNREADABLE", f"cannot read {path}: {error.strerror or error}") from error
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise TransferError("SOURCE_UNREADABLE", f"{path} is not a regular file; pipe it into standard input (-)")
        if facts.st_size == 0:
            raise TransferError("SOURCE_EMPTY", f"{path} is empty: there is nothing to send")
        yield FileSource(fd, facts.st_size)
    finally:
        os.close(fd)


def stream_source(stream: BinaryIO, limit: int) -> BufferSource:
    """Pages of standard input or a pipe, at most `limit` bytes. Raises TransferError SOURCE_TOO_LARGE."""
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise TransferError("SOURCE_TOO_LARGE", f"standard input is over the region's {limit} bytes")
    return BufferSource(data)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    name: str


_MAPS_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+\s*(.*)")


def process_mappings(pid: int) -> list[Mapping]:
    """The readable mappings of a process. Raises TransferError SOURCE_UNREADABLE."""
    try:
        text = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise TransferError(
            "SOURCE_UNREADABLE", f"cannot read the mappings of process {pid}: {error.strerror}"
        ) from error
    lines = (_MAPS_LINE.fullmatch(line) for line in text.splitlines())
    return [
        Mapping(int(m[1], 16), int(m[2], 16), m[3], m[4])
        for m in lines
        if m is not None and m[3].startswith("r") and m[4] not in ("[vvar]", "[vsyscall]", "[vvar_vclock]")
    ]


class ProcessSource:
    """Pages of another process's memory, read from /proc/PID/mem while it runs (a page is as it was when read)."""

    def __init__(self, pid: int, start: int, end: int) -> None:
        """`start` and `end` are 4 KiB-aligned addresses inside one readable mapping (or adjacent ones)."""
        if start % eb.PAGE_SIZE or end % eb.PAGE_SIZE or start >= end:
            raise TransferError("UNALIGNED", f"address range {start:#x}-{end:#x} is not whole 4096-byte pages")
        covered = start
        for mapping in process_mappings(pid):
            if mapping.start <= covered < mapping.end:
                covered = mapping.end
        if covered < end:
            raise TransferError(
                "SOURCE_UNREADABLE",
                f"process {pid} has nothing readable mapped at {covered:#x}; see /proc/{pid}/maps for its ranges",
            )
        self._pid = pid
        self._start = start
        self._pages = (end - start) // eb.PAGE_SIZE
        try:
            self._fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise TransferError(
                "SOURCE_UNREADABLE",
                f"cannot read the memory of process {pid}: {error.strerror}; run as its owner with CAP_SYS_PTRACE",
            ) from error

    @property
    def pages(self) -> int:
        return self._pages

    def read(self, first: int, count: int) -> Buffer:
        want = count * eb.PAGE_SIZE
        buffer = bytearray(want)
        view = memoryview(buffer)
        done = 0
        while done < want:
            try:
                got = os.preadv(self._fd, [view[done:]], self._start + first * eb.PAGE_SIZE + done)
            except OSError as error:
                raise TransferError(
                    "SOURCE_UNREADABLE", f"process {self._pid} stopped being readable: {error}"
                ) from error
            if got == 0:
                raise TransferError("SOURCE_UNREADABLE", f"process {self._pid} has ended; its memory is gone")
            done += got
        return buffer

    def close(self) -> None:
        """Closes the process's memory."""
        os.close(self._fd)
