"""Files through the bridge: read and sealed, opened and written; by io_uring, pread or a mapping, and with what the
kernel can be asked to fetch ahead.

Every way runs once a round, in an order drawn anew each round, since the way before leaves its mark on the disk's and
the kernel's caches. Before a cold read the file's pages are dropped from the page cache.
Beside GB/s of wall clock there are CPU seconds a GB, which say more on a machine that does other things too.
"""

from __future__ import annotations

import mmap
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import enclave_bridge as eb
from pagegate.bench.pair import shake_hands
from pagegate.bench.run import Results, Say, Series, describe_machine
from pagegate.errors import BridgeError

_BATCH = 1 << 20
_AHEAD = 4 * _BATCH
_REGION = 1
_MADV_POPULATE_READ = 22  # Linux 5.14; not in Python's mmap


@dataclass(frozen=True, slots=True)
class End:
    """A bridge, and two sessions in it that have shaken hands with each other."""

    bridge: eb.Bridge
    sender: eb.Session
    receiver: eb.Session


@dataclass(frozen=True, slots=True)
class Read:
    """One way to seal a whole file."""

    name: str
    seal: Callable[[int, int], None]
    """seal(fd, size)"""


@dataclass(frozen=True, slots=True)
class Write:
    """One way to open a whole file's records into another file."""

    name: str
    target: Callable[[eb.Transfer, int, int], object]
    """target(transfer, fd, size): what must be kept until all is written."""
    in_order: bool = True


def connect(file_io: str | None) -> End:
    """Both ends in one bridge, of the default suite. Raises BridgeStatusError when `file_io` cannot be had."""
    bridge = eb.Bridge(max_sessions=2, max_handshakes=2, file_io=file_io)
    return End(bridge, *shake_hands(bridge, bridge))


def run(directory: Path, rounds: int, mebibytes: int, say: Say) -> Results:
    """Measures in `directory`, which should be on the disk that matters. Raises OSError, BridgeError."""
    size = mebibytes << 20
    with ExitStack() as stack:
        pread, uring = connect("pread"), _io_uring()
        reads = [*_bridge_reads("io_uring", uring), *_bridge_reads("pread", pread), *_mapped_reads(pread)]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pagegate-bench-", dir=directory)))
        source = stack.enter_context(_descriptor(folder / "source"))
        _fill(source, size)
        series: dict[str, list[float]] = {}
        say(f"{rounds} interleaved rounds of reading {mebibytes} MiB, cold")
        _read_rounds(series, reads, source, size, rounds, cold=True)
        say("the same from the page cache")
        warm = [way for way in reads if "," not in way.name or "POPULATE" in way.name]
        _read_rounds(series, warm, source, size, rounds, cold=False)
        say("and of writing")
        _write_rounds(series, pread, folder / "target", size, rounds)
        about = {**describe_machine(pread.bridge.info), "file_system": _file_system(folder)}
    named = {name: Series(_unit(name), values) for name, values in series.items()}
    return Results(about, named, [], simulated=False)


def _unit(name: str) -> str:
    return "CPU s/GB" if name.endswith(", CPU") else "GB/s"


def _io_uring() -> End:
    try:
        return connect("io_uring")
    except eb.BridgeStatusError as error:
        raise BridgeError(
            error.reason, "there is no io_uring to compare with: sysctl kernel.io_uring_disabled, or a seccomp filter"
        ) from error


@contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _fill(fd: int, size: int) -> None:
    for at in range(0, size, _BATCH):
        os.pwrite(fd, os.urandom(_BATCH), at)
    os.fsync(fd)


def _file_system(folder: Path) -> str:
    """Type of the file system that a folder is on, by the longest mount point above it."""
    mounts = [line.split(" ") for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    above = [fields for fields in mounts if folder.resolve().is_relative_to(fields[1])]
    return max(above, key=lambda fields: len(fields[1]))[2] if above else "unknown"


# ---- reading ------------------------------------------------------------------------------


def _bridge_reads(name: str, end: End) -> list[Read]:
    def plain(fd: int, size: int) -> None:
        with end.bridge.source(fd, length=size) as source:
            for at in range(0, size, _BATCH):
                _seal_from(end, source, at)

    def advised(advice: int) -> Callable[[int, int], None]:
        def seal(fd: int, size: int) -> None:
            os.posix_fadvise(fd, 0, 0, advice)
            plain(fd, size)

        return seal

    def will_need(fd: int, size: int) -> None:
        with end.bridge.source(fd, length=size) as source:
            for at in range(0, size, _BATCH):
                os.posix_fadvise(fd, at + _BATCH, _AHEAD, os.POSIX_FADV_WILLNEED)
                _seal_from(end, source, at)

    return [
        Read(name, plain),
        Read(f"{name}, FADV_SEQUENTIAL", advised(os.POSIX_FADV_SEQUENTIAL)),
        Read(f"{name}, FADV_WILLNEED 4 MiB ahead", will_need),
        Read(f"{name}, FADV_RANDOM (no read-ahead)", advised(os.POSIX_FADV_RANDOM)),
    ]


def _seal_from(end: End, source: eb.Source, at: int) -> None:
    end.sender.seal_from(None, region=_REGION, first_gpa=at, source=source, offset=at, length=_BATCH)


def _mapped_reads(end: End) -> list[Read]:
    def mapped(advise: Callable[[mmap.mmap, int, int], None]) -> Callable[[int, int], None]:
        def seal(fd: int, size: int) -> None:
            with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as mapping, memoryview(mapping) as view:
                for at in range(0, size, _BATCH):
                    advise(mapping, at, size)
                    with view[at : at + _BATCH] as plain:
                        end.sender.seal(None, region=_REGION, first_gpa=at, plain=plain)

        return seal

    def sequential(mapping: mmap.mmap, at: int, _size: int) -> None:
        if at == 0:
            mapping.madvise(mmap.MADV_SEQUENTIAL)

    def will_need(mapping: mmap.mmap, at: int, size: int) -> None:
        if at + _BATCH < size:
            mapping.madvise(mmap.MADV_WILLNEED, at + _BATCH, min(_AHEAD, size - at - _BATCH))

    def populate(mapping: mmap.mmap, at: int, _size: int) -> None:
        mapping.madvise(_MADV_POPULATE_READ, at, _BATCH)

    return [
        Read("mapping", mapped(lambda _mapping, _at, _size: None)),
        Read("mapping, MADV_SEQUENTIAL", mapped(sequential)),
        Read("mapping, MADV_WILLNEED 4 MiB ahead", mapped(will_need)),
        Read("mapping, MADV_POPULATE_READ", mapped(populate)),
    ]


def _read_rounds(
    series: dict[str, list[float]], ways: Sequence[Read], fd: int, size: int, rounds: int, *, cold: bool
) -> None:
    state = "cold" if cold else "warm"
    for way in ways:  # first, so that the report has them in this order
        series.update({f"read {state}: {way.name}": [], f"read {state}: {way.name}, CPU": []})
    for _ in range(rounds):
        for way in random.sample(ways, len(ways)):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED if cold else os.POSIX_FADV_WILLNEED)
            started, cpu = time.perf_counter(), time.process_time()
            way.seal(fd, size)
            _note(series, f"read {state}: {way.name}", size, started, cpu)


def _note(series: dict[str, list[float]], name: str, size: int, started: float, cpu: float) -> None:
    series[name].append(size / 1e9 / (time.perf_counter() - started))
    series[f"{name}, CPU"].append((time.process_time() - cpu) / (size / 1e9))


# ---- writing ------------------------------------------------------------------------------


def _mapped(transfer: eb.Transfer, fd: int, size: int) -> mmap.mmap:
    mapping = mmap.mmap(fd, size)
    transfer.target_memory(mapping)
    return mapping


def _written(transfer: eb.Transfer, fd: int, _size: int) -> None:
    transfer.target_fd(fd)


_WRITES = (
    Write("pwrite, sent to the disk by the way", _written),
    # Every other half batch first: then nothing is in order for long enough to be sent.
    Write("pwrite, all left to fsync", _written, in_order=False),
    Write("mapping", _mapped),
)


def _write_rounds(series: dict[str, list[float]], end: End, path: Path, size: int, rounds: int) -> None:
    half = _BATCH // 2
    batches = list(range(0, size, half))
    data = os.urandom(half)
    for way in _WRITES:
        series.update({f"{name}{of}": [] for name in _names(way) for of in ("", ", CPU")})
    for _ in range(rounds):
        for way in random.sample(_WRITES, len(_WRITES)):
            order = batches if way.in_order else batches[::2] + batches[1::2]
            records = [end.sender.seal(None, region=_REGION, first_gpa=at, plain=data)[0] for at in order]
            _write_once(series, end, path, size, way, records)


def _names(way: Write) -> tuple[str, str]:
    return f"write: {way.name}, before fsync", f"write: {way.name}, after fsync"


def _write_once(
    series: dict[str, list[float]], end: End, path: Path, size: int, way: Write, records: Sequence[bytes]
) -> None:
    path.unlink(missing_ok=True)
    with (
        _descriptor(path) as fd,
        end.bridge.transfer(
            end.bridge.random(eb.TRANSFER_ID_SIZE), region=_REGION, base_gpa=0, pages=size // eb.PAGE_SIZE
        ) as transfer,
    ):
        os.ftruncate(fd, size)
        kept = way.target(transfer, fd, size)
        started, cpu = time.perf_counter(), time.process_time()
        for batch in records:
            end.receiver.open(transfer, batch)
        before, after = _names(way)
        _note(series, before, size, started, cpu)
        os.fsync(fd)
        _note(series, after, size, started, cpu)
        del kept
