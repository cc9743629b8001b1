"""What it costs to keep the keys in a process of their own: the same calls with the bridge here and there.

Each figure is the time of one whole call from Python, by the page: batches of one page, 64 and 256. `open` puts a
batch's records into a region (what a server does on TransferPages), `seal_from` seals a region's pages (GetRegion),
`seal` seals the caller's memory (a client that isolates its bridge). Batches come as those of a stream do, one after the
other; the two backends take turns burst by burst. `after_pause` is the first call when the bridge's process sleeps,
which it does after 50 us without one: what a lone batch costs more is the waking up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import enclave_bridge as eb
from pagegate.bench.pair import shake_hands
from pagegate.bench.run import Results, Say, Series, Target, describe_machine

BATCHES = (1, 64, 256)
_LIMIT = 1.1
_REGION = 1
_BURST = 16
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
    """Measures `mebibytes` a round and operation. Raises BridgeStatusError where no isolated bridge starts."""
    values: dict[str, list[float]] = {}
    with ExitStack() as stack:
        ends = {name: Ends.meet(backend) for name, backend in _BACKENDS.items()}
        about = describe_machine(ends["isolated"].bridge.info)
        for pages in BATCHES:
            say(f"{rounds} interleaved rounds of batches of {pages} pages")
            calls = {name: stack.enter_context(_calls(end, pages)) for name, end in ends.items()}
            bursts = max(2, (mebibytes << 8) // max(pages, 64) // _BURST)
            for _ in range(rounds):
                for operation in ("open", "seal_from", "seal"):
                    operations = {name: made[operation] for name, made in calls.items()}
                    _round(values, operations, f"{operation}_{pages}", bursts, _BURST, pages)
                paused = {name: _after_pause(made["open"]) for name, made in calls.items()}
                _round(values, paused, f"open_{pages}_after_pause", _BURST, 1, pages)
    series = {name: Series("us/page", some) for name, some in values.items()}
    return Results(about, series, _targets(series), simulated=False)


Burst = Callable[[int], float]
"""Makes so many calls, one after the other, and returns their seconds."""


def _round(
    values: dict[str, list[float]], calls: Mapping[str, Burst], name: str, bursts: int, burst: int, pages: int
) -> None:
    """Turn and turn about, so that whatever else runs on the machine hits both alike."""
    spent = dict.fromkeys(calls, 0.0)
    for _ in range(bursts):
        for backend, call in calls.items():
            spent[backend] += call(burst)
    for backend, seconds in spent.items():
        values.setdefault(f"{name}_{backend}", []).append(seconds / bursts / burst / pages * 1e6)


def _after_pause(call: Burst) -> Burst:
    def paused(count: int) -> float:
        time.sleep(_PAUSE_S)
        return call(count)

    return paused


@contextmanager
def _calls(ends: Ends, pages: int) -> Iterator[dict[str, Burst]]:
    """The operations, on regions of one batch."""
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

            def open_batches(count: int) -> float:
                batches = [ends.peer.seal(None, region=_REGION, first_gpa=0, plain=plain)[0] for _ in range(count)]
                started = time.perf_counter()
                for records in batches:
                    ends.session.open(target, records)
                return time.perf_counter() - started

            def seal_from(count: int) -> float:
                started = time.perf_counter()
                for _ in range(count):
                    ends.session.seal_from(None, region=_REGION, first_gpa=0, source=source, offset=0, length=size)
                return time.perf_counter() - started

            def seal(count: int) -> float:
                started = time.perf_counter()
                for _ in range(count):
                    ends.session.seal(None, region=_REGION, first_gpa=0, plain=plain)
                return time.perf_counter() - started

            yield {"open": open_batches, "seal_from": seal_from, "seal": seal}
    finally:
        for fd in fds:
            os.close(fd)


def _targets(series: Mapping[str, Series]) -> list[Target]:
    found = []
    for pages in (n for n in BATCHES if n >= 64):
        for operation in ("open", "seal_from", "seal"):
            here, there = (series[f"{operation}_{pages}_{name}"].values for name in _BACKENDS)
            ratios = Series("", [b / a for a, b in zip(here, there, strict=True)])
            found.append(
                Target(f"{operation} of {pages} pages, isolated against in-process, times", ratios.median, _LIMIT, True)
            )
    return found
