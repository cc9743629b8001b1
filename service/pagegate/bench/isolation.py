"""What it costs to keep the keys in a process of their own: the same calls with the bridge here and there.

Each figure is the time of one whole call from Python, by the page: batches of one page, 64 and 256. `open` puts a
batch's records into a region (what a server does on TransferPages), `seal_from` seals a region's pages (GetRegion),
`seal` seals the caller's memory (a client that isolates its bridge). The two backends take turns batch by batch.
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
            batches = max(8, (mebibytes << 8) // max(pages, 64))
            for _ in range(rounds):
                for operation in ("open", "seal_from", "seal"):
                    _round(values, {name: made[operation] for name, made in calls.items()}, operation, pages, batches)
    series = {name: Series("us/page", some) for name, some in values.items()}
    return Results(about, series, _targets(series), simulated=False)


def _round(
    values: dict[str, list[float]], calls: Mapping[str, Callable[[], float]], operation: str, pages: int, batches: int
) -> None:
    """Turn and turn about, so that whatever else runs on the machine hits both alike."""
    spent = dict.fromkeys(calls, 0.0)
    for _ in range(batches):
        for name, call in calls.items():
            spent[name] += call()
    for name, seconds in spent.items():
        values.setdefault(f"{operation}_{pages}_{name}", []).append(seconds / batches / pages * 1e6)


@contextmanager
def _calls(ends: Ends, pages: int) -> Iterator[dict[str, Callable[[], float]]]:
    """Operations that make one call each and return its seconds."""
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

            def open_batch() -> float:
                records, _ = ends.peer.seal(None, region=_REGION, first_gpa=0, plain=plain)
                started = time.perf_counter()
                ends.session.open(target, records)
                return time.perf_counter() - started

            def seal_from() -> float:
                started = time.perf_counter()
                ends.session.seal_from(None, region=_REGION, first_gpa=0, source=source, offset=0, length=size)
                return time.perf_counter() - started

            def seal() -> float:
                started = time.perf_counter()
                ends.session.seal(None, region=_REGION, first_gpa=0, plain=plain)
                return time.perf_counter() - started

            yield {"open": open_batch, "seal_from": seal_from, "seal": seal}
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
