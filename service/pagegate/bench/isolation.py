"""What it costs to keep the keys in a process of their own: the same calls with the bridge here and there.

Each figure is the time of one whole call from Python by the page, the median of a stream's: batches of one page, 64 and
256. `open` puts a batch's records into a region (what a server does on TransferPages), `seal_from` seals a region's pages
(GetRegion), `seal` seals the caller's memory (a client that isolates its bridge). Batches come as those of a stream do, one
after the other, 8 MiB of them, or 512.

Two cores are not equally fast where a virtual machine's host shares them with others, nor is one as fast while the second is
awake as while it sleeps. So the same core does the cryptography in all three ways that are compared, every core in turn, and
a second one is awake meanwhile:

  isolated           the bridge's process has the core, its caller the other one
  in_process         caller and bridge have the core, and the other is kept awake, as by another thread of a busy service
  in_process_alone   the same while the other core sleeps: what one core can do that has the machine to itself

Streams of the three follow each other, in another order each time; the first milliseconds are not counted, in which the host
finds a place for a core that slept. A target is judged by the ratio of neighbouring streams, `isolated` by `in_process`: they
are short, so that both find the same neighbours.
`after_pause` is what a batch costs that finds the bridge's process asleep, which it is after 50 us without a call.

What is isolated goes from one core to another. `line_turn` is how long that takes for a line of memory, there and back: 100 ns
where they share a cache, 500 ns and more where they do not, and a virtual machine's cores may move from one to the other
within seconds.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import enclave_bridge as eb
from pagegate.bench import program
from pagegate.bench.pair import shake_hands
from pagegate.bench.run import Results, Say, Series, Target, describe_machine

BATCHES = (1, 64, 256)
OPERATIONS = ("open", "seal_from", "seal")
_LIMIT = 1.1
_REGION = 1
_STREAM_MIB, _STREAM_CALLS = 8, 512
_SETTLE_S = 0.005
_PAUSE_S = 0.002


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
    """As many streams of each kind a round as hold `mebibytes`.

    Raises BridgeStatusError where no isolated bridge starts, PagegateError BENCH_PROGRAM.
    """
    values: dict[str, list[float]] = {}
    turns: list[float] = []
    streams = max(1, mebibytes // _STREAM_MIB)
    with ExitStack() as stack:
        here, there = Ends.meet(eb.Bridge), Ends.meet(eb.IsolatedBridge)
        cores = _Cores(there.bridge.info.process, stack.enter_context(program.Awake()))
        stack.callback(cores.give_back)
        about = describe_machine(there.bridge.info)
        for pages in BATCHES:
            say(f"{rounds} interleaved rounds of batches of {pages} pages")
            count = min((_STREAM_MIB << 20) // (pages * eb.PAGE_SIZE), _STREAM_CALLS)
            with _operations(here, pages) as own, _operations(there, pages) as others:
                shared = _Way("in_process", here, own, cores.of_a_busy_service)
                alone = _Way("in_process_alone", here, own, cores.alone)
                isolated = _Way("isolated", there, others, cores.apart)
                for _ in range(rounds):
                    for operation in OPERATIONS:
                        for _ in cores.in_turn(streams):
                            _stream_each(values, [shared, alone, isolated], operation, pages, count)
                    for _ in cores.in_turn(streams):
                        _pause_each(values, [alone, isolated], pages)
                    if (turn := cores.line_turn()) is not None:
                        turns.append(turn)
    series = {name: Series("us/page", some) for name, some in values.items()}
    if turns:
        series["line_turn"] = Series("ns", turns)
    return Results(about, series, _targets(series), simulated=False)


def _stream_each(values: dict[str, list[float]], ways: Sequence[_Way], operation: str, pages: int, count: int) -> None:
    """A stream of each way, in an order drawn anew."""
    for way in random.sample(ways, len(ways)):
        _note(values, f"{operation}_{pages}_{way.name}", way.stream(operation, count), pages)


def _pause_each(values: dict[str, list[float]], ways: Sequence[_Way], pages: int) -> None:
    for way in ways:
        _note(values, f"open_{pages}_after_pause_{way.name}", way.after_pause(), pages)


def _note(values: dict[str, list[float]], name: str, seconds: float, pages: int) -> None:
    values.setdefault(name, []).append(seconds / pages * 1e6)


class _Cores:
    """Those that this thread may use: one that does the cryptography, and another one."""

    def __init__(self, bridge: int | None, awake: program.Awake) -> None:
        self._bridge, self._awake = bridge, awake
        self._all = sorted(os.sched_getaffinity(0))
        self._worker = self._other = self._all[0]

    def in_turn(self, count: int) -> Iterator[None]:
        """So many times, while every core in turn is the one that does the cryptography, each as often."""
        for number in range(count):
            index = number * len(self._all) // count
            self._worker, self._other = self._all[index], self._all[(index + 1) % len(self._all)]
            yield

    def of_a_busy_service(self) -> None:
        """This thread does the cryptography, and the other core is awake."""
        self.alone()
        if self._other != self._worker:
            self._awake.on(self._other)

    def alone(self) -> None:
        """This thread does the cryptography, and the other core sleeps."""
        self._awake.sleep()
        os.sched_setaffinity(0, {self._worker})

    def apart(self) -> None:
        """The bridge's process does the cryptography, and this thread has the other core."""
        self._awake.sleep()
        for thread in Path(f"/proc/{self._bridge}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {self._worker})
        os.sched_setaffinity(0, {self._other})

    def line_turn(self) -> float | None:
        """`line_turn`; None where there is one core."""
        self.give_back()
        if len(self._all) == 1:
            return None
        found = program.measure("pagegate-bench-line", str(self._all[0]), str(self._all[-1]))
        return float(found["turn_ns"]["median"])

    def give_back(self) -> None:
        """This thread may use all of them again."""
        self._awake.sleep()
        os.sched_setaffinity(0, self._all)


Operation = Callable[[int], list[Callable[[], object]]]
"""Makes so many calls ready."""


@dataclass(frozen=True, slots=True)
class _Way:
    """Where the bridge is, and what the cores do."""

    name: str
    ends: Ends
    operations: Mapping[str, Operation]
    take_cores: Callable[[], None]

    def stream(self, operation: str, count: int) -> float:
        """Seconds that one of so many calls takes, the median."""
        self.take_cores()
        calls = self.operations[operation](count)
        (seal,) = self.operations["seal"](1)
        settled = time.perf_counter() + _SETTLE_S
        while time.perf_counter() < settled:
            seal()
        return _median_of(calls)

    def after_pause(self) -> float:
        """Seconds that `open` takes when nothing was done for a while."""
        self.take_cores()
        calls = self.operations["open"](1)
        time.sleep(_PAUSE_S)
        return _median_of(calls)


def _median_of(calls: Sequence[Callable[[], object]]) -> float:
    times = [time.perf_counter()]
    for call in calls:
        call()
        times.append(time.perf_counter())
    return statistics.median(end - start for start, end in pairwise(times))


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
            here, there = (series[f"{operation}_{pages}_{name}"].values for name in ("in_process", "isolated"))
            ratios = Series("", [b / a for a, b in zip(here, there, strict=True)])
            found.append(
                Target(f"{operation} of {pages} pages, isolated against in-process, times", ratios.median, _LIMIT, True)
            )
    return found
