"""What it costs to keep the keys in a process of their own: the same calls with the bridge here and there.

Each figure is the time of one whole call from Python by the page, the median of a stream's: batches of one page, 64 and
256. `open` puts a batch's records into a region (what a server does on TransferPages), `seal_from` seals a region's pages
(GetRegion), `seal` seals the caller's memory (a client that isolates its bridge). Batches come as those of a stream do, one
after the other, 64 MiB of them whatever their size: the host of a virtual machine takes some milliseconds until it has found
a place for the second core, which slept meanwhile. The two backends take turns stream by stream, and every core is the
caller's in turn: a virtual machine's cores are not equally fast, and the isolated bridge is on another one than its caller.
A bridge's process sleeps after 50 us without a call, so each stream begins with a call that is not counted; `after_pause`
is what a batch costs that finds it asleep.

What is isolated goes from one core to another. `line_turn` is how long that takes for a line of memory, there and back: 100 ns
where they share a cache, 500 ns and more where they do not, and a virtual machine's cores may move from one to the other
within seconds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import enclave_bridge as eb
from pagegate.bench import program
from pagegate.bench.pair import shake_hands
from pagegate.bench.run import Results, Say, Series, Target, describe_machine

BATCHES = (1, 64, 256)
OPERATIONS = ("open", "seal_from", "seal")
_LIMIT = 1.1
_REGION = 1
_STREAMS, _STREAM_PAGES = 4, 16384
_PAUSES = 16
_PAUSE_S = 0.002
_BACKENDS: Mapping[str, type[eb.Bridge]] = {"in_process": eb.Bridge, "isolated": eb.IsolatedBridge}


@dataclass(frozen=True, slots=True)
class Ends:
    """A peer's session, and ours: the peer's bridge is always in this process."""

    bridge: eb.Bridge
    peer: eb.Session
    session: eb.Session

    @classmethod
    def meet(cls, backend: type[eb.Bridge]) -> Ends:
        """Both ends of one session."""
        far, bridge = eb.Bridge(max_sessions=1, max_handshakes=1), backend(max_sessions=1, max_handshakes=1)
        return cls(bridge, *shake_hands(far, bridge))


def run(rounds: int, mebibytes: int, say: Say) -> Results:
    """Streams of `mebibytes`, but 64 at most, four a round and operation.

    Raises BridgeStatusError where no isolated bridge starts.
    """
    values: dict[str, list[float]] = {}
    turns: list[float] = []
    with ExitStack() as stack:
        ends = {name: Ends.meet(backend) for name, backend in _BACKENDS.items()}
        about = describe_machine(ends["isolated"].bridge.info)
        for pages in BATCHES:
            say(f"{rounds} interleaved rounds of batches of {pages} pages")
            sides = [_Side(name, end, stack.enter_context(_operations(end, pages))) for name, end in ends.items()]
            count = min(_STREAM_PAGES, mebibytes << 8) // pages
            for _ in range(rounds):
                for operation in OPERATIONS:
                    _round(values, sides, operation, pages, count)
                _round(values, sides, "open", pages, 1, after_pause=True)
                if (turn := _line_turn()) is not None:
                    turns.append(turn)
    series = {name: Series("us/page", some) for name, some in values.items()}
    if turns:
        series["line_turn"] = Series("ns", turns)
    return Results(about, series, _targets(series), simulated=False)


Operation = Callable[[int], list[Callable[[], object]]]
"""Makes so many calls ready."""


@dataclass(frozen=True, slots=True)
class _Side:
    backend: str
    ends: Ends
    operations: Mapping[str, Operation]

    def stream(self, operation: str, count: int, *, after_pause: bool) -> float:
        """Seconds that one of so many calls takes, the median, by a bridge that is awake, or sleeps."""
        calls = self.operations[operation](count)
        if after_pause:
            time.sleep(_PAUSE_S)
        else:
            self.ends.session.stats()
        times = [time.perf_counter()]
        for call in calls:
            call()
            times.append(time.perf_counter())
        return statistics.median(end - start for start, end in pairwise(times))


@contextmanager
def _cores() -> Iterator[list[int]]:
    """Those that this thread may use, for it to choose one; all of them again afterwards."""
    cores = os.sched_getaffinity(0)
    try:
        yield sorted(cores)
    finally:
        os.sched_setaffinity(0, cores)


def _round(
    values: dict[str, list[float]],
    sides: Sequence[_Side],
    operation: str,
    pages: int,
    count: int,
    *,
    after_pause: bool = False,
) -> None:
    """Turn and turn about, so that whatever else runs on the machine hits both alike: also one core more than another."""
    streams = _PAUSES if after_pause else _STREAMS
    spent = {side.backend: 0.0 for side in sides}
    with _cores() as cores:
        for number in range(streams):
            os.sched_setaffinity(0, {cores[number * len(cores) // streams]})
            for side in sides:
                spent[side.backend] += side.stream(operation, count, after_pause=after_pause)
    name = f"{operation}_{pages}_after_pause" if after_pause else f"{operation}_{pages}"
    for backend, seconds in spent.items():
        values.setdefault(f"{name}_{backend}", []).append(seconds / streams / pages * 1e6)


def _line_turn() -> float | None:
    """`line_turn`; None where there is one core."""
    with _cores() as cores:
        if len(cores) == 1:
            return None
        found = program.measure("pagegate-bench-line", str(cores[0]), str(cores[-1]))
    return float(found["turn_ns"]["median"])


@contextmanager
def _operations(ends: Ends, pages: int) -> Iterator[dict[str, Operation]]:
    """On regions of one batch."""
    size = pages * eb.PAGE_SIZE
    plain = os.urandom(size)
    fds = [os.memfd_create(name) for name in ("bench-target", "bench-source")]
    try:
        os.ftruncate(fds[0], size)
        os.pwrite(fds[1], plain, 0)
        with (
            ends.bridge.transfer(bytes(eb.TRANSFER_ID_SIZE), region=_REGION, base_gpa=0, pages=pages) as target,
            ends.bridge.source(fds[1], length=size) as source,
        ):
            target.target_fd(fds[0])
            seal = partial(ends.session.seal, None, region=_REGION, first_gpa=0, plain=plain)
            seal_from = partial(
                ends.session.seal_from, None, region=_REGION, first_gpa=0, source=source, offset=0, length=size
            )

            def open_batches(count: int) -> list[Callable[[], object]]:
                batches = [ends.peer.seal(None, region=_REGION, first_gpa=0, plain=plain)[0] for _ in range(count)]
                return [partial(ends.session.open, target, records) for records in batches]

            yield {"open": open_batches, "seal_from": lambda n: [seal_from] * n, "seal": lambda n: [seal] * n}
    finally:
        for fd in fds:
            os.close(fd)


def _targets(series: Mapping[str, Series]) -> list[Target]:
    found = []
    for pages in (n for n in BATCHES if n >= 64):
        for operation in OPERATIONS:
            here, there = (series[f"{operation}_{pages}_{name}"].values for name in _BACKENDS)
            ratios = Series("", [b / a for a, b in zip(here, there, strict=True)])
            found.append(
                Target(f"{operation} of {pages} pages, isolated against in-process, times", ratios.median, _LIMIT, True)
            )
    return found
