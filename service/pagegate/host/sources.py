"""Where lines come from: a recorded file, the kernel log, and a tracefs instance of our own."""

from __future__ import annotations

import os
import selectors
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pagegate.errors import PlatformError
from pagegate.host.events import lost_log_line

_RECORD = 8192
_IDLE_SECONDS = 0.5
_MAX_PARTIAL = 64 * 1024

TRACE_EVENTS = (
    ("kvm/kvm_rmp_fault", None),
    ("exceptions/page_fault_user", "error_code & 0x80000000"),
    ("exceptions/page_fault_kernel", "error_code & 0x80000000"),
)
"""Trace events to turn on, with the filter that keeps all but RMP faults in the kernel."""


def recorded(path: Path) -> Iterator[str]:
    """The lines of a recorded file. Raises PlatformError when it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            while line := file.readline(_RECORD):
                yield line
    except OSError as error:
        raise PlatformError("RECORDING_UNREADABLE", f"{path} cannot be read: {error.strerror}") from error


class KernelLines:
    """Lines of the running kernel, from what of it this process may see.

    `log_path` and `tracefs` are the real places unless a test says otherwise.
    """

    def __init__(
        self, *, log_path: Path = Path("/dev/kmsg"), tracefs: Path = Path("/sys/kernel/tracing"), from_start: bool
    ) -> None:
        self._stack = ExitStack()
        self._sources: dict[int, bytes] = {}
        self.unseen: list[str] = []
        """What could not be opened and why, for the operator."""
        self._open_log(log_path, from_start=from_start)
        self._open_trace(tracefs)

    @property
    def blind(self) -> bool:
        """True when nothing can be watched at all."""
        return not self._sources

    def waiting(self) -> Iterator[str]:
        """The lines that are there now; ends when there are no more."""
        for descriptor in self._sources:
            while lines := self._read(descriptor):
                yield from lines

    def follow(self) -> Iterator[str | None]:
        """Lines as they come, for ever; None about twice a second, so that a caller can stop."""
        with selectors.DefaultSelector() as selector:
            for descriptor in self._sources:
                selector.register(descriptor, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(_IDLE_SECONDS):
                    yield from self._read(key.fd)
                yield None

    def close(self) -> None:
        """Closes everything and removes the trace instance."""
        self._stack.close()

    def __enter__(self) -> KernelLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_log(self, path: Path, *, from_start: bool) -> None:
        try:
            descriptor = self._descriptor(path)
            if not from_start:
                os.lseek(descriptor, 0, os.SEEK_END)
        except OSError as error:
            self.unseen.append(f"kernel log {path}: {error.strerror}; run as root or set kernel.dmesg_restrict=0")

    def _open_trace(self, tracefs: Path) -> None:
        try:
            instance = self._stack.enter_context(_instance(tracefs))
            enabled = [name for name, condition in TRACE_EVENTS if _enable(instance, name, condition)]
            missing = [name for name, _ in TRACE_EVENTS if name not in enabled]
            if missing:
                self.unseen.append(f"trace events that this kernel does not have: {', '.join(missing)}")
            if enabled:
                self._descriptor(instance / "trace_pipe")
        except OSError as error:
            self.unseen.append(f"tracefs at {tracefs}: {error.strerror}; run as root, mount -t tracefs none {tracefs}")

    def _descriptor(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._stack.callback(os.close, descriptor)
        self._sources[descriptor] = b""
        return descriptor

    def _read(self, descriptor: int) -> Sequence[str]:
        """Whole lines of one read; the rest waits for the next."""
        try:
            data = os.read(descriptor, _RECORD)
        except BlockingIOError:
            return ()
        except BrokenPipeError:
            return (lost_log_line(),)
        *lines, rest = (self._sources[descriptor] + data).split(b"\n")
        self._sources[descriptor] = rest if len(rest) <= _MAX_PARTIAL else b""
        return [line.decode("utf-8", "replace") for line in lines]


@contextmanager
def _instance(tracefs: Path) -> Iterator[Path]:
    """A trace buffer of our own: what others trace stays as it is."""
    path = tracefs / "instances" / f"pagegate-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        with suppress(OSError):
            path.rmdir()


def _enable(instance: Path, name: str, condition: str | None) -> bool:
    folder = instance / "events" / name
    if not folder.is_dir():
        return False
    if condition is not None:
        (folder / "filter").write_text(condition)
    (folder / "enable").write_text("1")
    return True
