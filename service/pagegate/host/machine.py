"""The one way to look at the machine: files below a root, which is `/` or a captured tree.

Every reading ends in one of three ways: a value, None for "not there", or CannotSeeError for "not
allowed to look", which is never taken for an answer.
"""

from __future__ import annotations

import ctypes
import gzip
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

_CHUNK = 64 * 1024  # files in /proc/sys refuse a large buffer with ENOMEM
_MAX_CHUNKS = 256
_KMSG_RECORD = 8192
_ABSENT = (FileNotFoundError, NotADirectoryError)
_STA_UNSYNC = 0x0040
_TIME_ERROR = 5


class CannotSeeError(Exception):
    """The machine does not let this process look. The message says what, and what would."""


@dataclass(frozen=True, slots=True)
class Node:
    """A file that is there for its mode and access, not its content."""

    mode: int
    """Permission bits."""
    owner: int
    group: int
    usable: bool
    """This process may read and write it."""


@dataclass(frozen=True, slots=True)
class KernelLog:
    """Messages of this boot that are still kept, oldest first."""

    messages: tuple[str, ...]
    complete: bool
    """False when the oldest were overwritten: then a missing line proves nothing."""

    def find(self, *needles: str) -> str | None:
        """The last message that holds all of `needles`."""
        return next((m for m in reversed(self.messages) if all(n in m for n in needles)), None)


@dataclass(frozen=True, slots=True)
class ClockState:
    """The kernel's NTP state (adjtimex(2))."""

    synchronised: bool
    max_error: float
    """Seconds; grows while nothing disciplines the clock."""


def read_clock() -> ClockState:
    """Asks the kernel. Needs no privilege. Raises CannotSeeError."""
    libc = ctypes.CDLL(None, use_errno=True)
    # struct timex: modes u32, then longs offset, freq, maxerror, esterror, status i32, ...; 208 bytes on LP64.
    buffer = ctypes.create_string_buffer(256)
    state = libc.adjtimex(buffer)
    if state < 0:
        raise CannotSeeError(f"adjtimex is refused here: {os.strerror(ctypes.get_errno())}")
    max_error, _, status = struct.unpack_from("=qqi", buffer.raw, 24)
    return ClockState(state != _TIME_ERROR and not status & _STA_UNSYNC, max_error / 1e6)


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as files. The default is the one this process runs on."""

    root: Path = Path("/")
    clock: Callable[[], ClockState] = read_clock

    def text(self, path: str) -> str | None:
        """A file's text without the final newline, None when it is not there."""
        data = self._bytes(path)
        return None if data is None else data.decode("utf-8", "replace").rstrip("\n")

    def number(self, path: str) -> int | None:
        """A file's decimal number, None when it is not there or not a number."""
        text = self.text(path)
        try:
            return None if text is None else int(text)
        except ValueError:
            return None

    def exists(self, path: str) -> bool:
        """True when something is there."""
        try:
            self._at(path).lstat()
        except _ABSENT:
            return False
        except OSError as error:
            raise self._cannot(path, error) from error
        return True

    def names(self, path: str) -> tuple[str, ...]:
        """The sorted names in a folder, empty when it is not there."""
        try:
            return tuple(sorted(found.name for found in self._at(path).iterdir()))
        except _ABSENT:
            return ()
        except OSError as error:
            raise self._cannot(path, error) from error

    def node(self, path: str) -> Node | None:
        """A device node, None when it is not there."""
        try:
            found = self._at(path).stat()
        except _ABSENT:
            return None
        except OSError as error:
            raise self._cannot(path, error) from error
        usable = os.access(self._at(path), os.R_OK | os.W_OK)
        return Node(found.st_mode & 0o7777, found.st_uid, found.st_gid, usable)

    def cpuinfo(self) -> Mapping[str, str]:
        """The first processor's fields of /proc/cpuinfo."""
        first = (self.text("/proc/cpuinfo") or "").split("\n\n", 1)[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}

    def cpu_flags(self) -> frozenset[str]:
        """Features that the kernel found and kept."""
        return frozenset(self.cpuinfo().get("flags", "").split())

    def cpuid(self, leaf: int) -> tuple[int, int, int, int] | None:
        """EAX, EBX, ECX, EDX of a leaf as the CPU gives them, None without the cpuid module."""
        data = self._at_offset("/dev/cpu/0/cpuid", leaf, 16)
        return None if data is None else struct.unpack("<4I", data)

    def msr(self, register: int) -> int | None:
        """A model-specific register, None without the msr module or the register."""
        data = self._at_offset("/dev/cpu/0/msr", register, 8)
        return None if data is None else int.from_bytes(data, "little")

    def command_line(self) -> tuple[str, ...]:
        """The kernel's boot options."""
        return tuple((self.text("/proc/cmdline") or "").split())

    def release(self) -> tuple[int, int] | None:
        """Kernel version as (major, minor)."""
        parts = (self.text("/proc/sys/kernel/osrelease") or "").split(".")
        try:
            return int(parts[0]), int(parts[1].split("-")[0])
        except (ValueError, IndexError):
            return None

    def config(self) -> Mapping[str, str] | None:
        """The kernel's build options, None when it does not tell."""
        packed = self._bytes("/proc/config.gz")
        if packed is not None:
            try:
                text = gzip.decompress(packed).decode("utf-8", "replace")
            except (OSError, EOFError) as error:
                raise CannotSeeError(f"/proc/config.gz is damaged: {error}") from error
        else:
            found = self.text(f"/boot/config-{self.text('/proc/sys/kernel/osrelease')}")
            if found is None:
                return None
            text = found
        pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
        return {name: value for name, equals, value in pairs if equals}

    def kernel_log(self) -> KernelLog:
        """What /dev/kmsg still holds. Raises CannotSeeError when it is not for this process."""
        records = self._records("/dev/kmsg")
        if records is None:
            raise CannotSeeError("there is no /dev/kmsg (a container?)")
        kept = [r for r in map(_kmsg_record, records) if r is not None]
        return KernelLog(tuple(text for _, text in kept), complete=bool(kept) and kept[0][0] == 0)

    def _records(self, path: str) -> list[str] | None:
        """/dev/kmsg gives one record a read and EAGAIN at its end; a captured file is just lines."""
        try:
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except _ABSENT:
            return None
        except OSError as error:
            raise self._cannot(path, error, "run as root, or set kernel.dmesg_restrict=0") from error
        data: list[bytes] = []
        try:
            while chunk := _read_record(descriptor):
                data.append(chunk)
        except OSError as error:
            raise self._cannot(path, error, "run as root, or set kernel.dmesg_restrict=0") from error
        finally:
            os.close(descriptor)
        return b"".join(data).decode("utf-8", "replace").splitlines()

    def _bytes(self, path: str) -> bytes | None:
        try:
            with self._at(path).open("rb", buffering=0) as file:
                return b"".join(islice(iter(partial(file.read, _CHUNK), b""), _MAX_CHUNKS))
        except _ABSENT:
            return None
        except OSError as error:
            raise self._cannot(path, error) from error

    def _at_offset(self, path: str, offset: int, length: int) -> bytes | None:
        try:
            with self._at(path).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), length, offset)
        except _ABSENT:
            return None
        except PermissionError as error:
            raise self._cannot(path, error) from error
        except OSError:
            return None  # the CPU has no such register
        return data if len(data) == length else None

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _cannot(self, path: str, error: OSError, remedy: str = "run as root to see it") -> CannotSeeError:
        return CannotSeeError(f"{path}: {error.strerror}; {remedy}")


def _read_record(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, _KMSG_RECORD)
        except BlockingIOError:
            return b""
        except BrokenPipeError:
            continue  # the oldest records were overwritten while reading: the next read goes on behind them


def _kmsg_record(line: str) -> tuple[int, str] | None:
    """Sequence number and text of a kernel's record. User space can write here too, never as facility 0."""
    head, semicolon, text = line.partition(";")
    fields: Any = head.split(",")
    try:
        priority, sequence = int(fields[0]), int(fields[1])
    except (ValueError, IndexError):
        return None
    return (sequence, text) if semicolon and priority < 8 else None
