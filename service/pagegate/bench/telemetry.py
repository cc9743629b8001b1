"""What telemetry costs: sealed streaming with and without it, interleaved.

`python -m pagegate.bench.telemetry [--restarts N] [--rounds N] [--mebibytes N] [--json]`. With telemetry, client and server keep spans
and metrics at the default sampling and export them by OTLP/gRPC to a sink in a process of its own. The two servers run
side by side, only one is busy at a time, and there are several fresh pairs of them. Judged is processor time a byte, both sides together: on a machine that
others use too, it is steadier than the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc

import enclave_bridge as eb
from pagegate.bench.setup import CLIENT, SERVER, appraiser, platform
from pagegate.client import Client
from pagegate.server import Server, ServerOptions
from pagegate.telemetry import NO_TELEMETRY, Telemetry, TelemetrySettings, Tracing
from pagegate.transfer.region import RegionSpec

LIMIT = 0.03
"""Share of processor time that telemetry may add."""
_COLLECTOR = "opentelemetry.proto.collector"


@dataclass(frozen=True, slots=True)
class Overhead:
    """What was found: medians over rounds, with quartiles."""

    rounds: int
    mebibytes: int
    cpu_without: tuple[float, float, float]
    """Processor seconds a GiB, both sides: lower quartile, median, upper quartile."""
    cpu_with: tuple[float, float, float]
    rate_without: tuple[float, float, float]
    """Gbit/s."""
    rate_with: tuple[float, float, float]
    cpu_overhead: tuple[float, float, float]
    """Share added, round by round: both of a pair saw the same machine."""
    rate_overhead: tuple[float, float, float]

    @property
    def met(self) -> bool:
        """True when the median of processor time added is within the limit."""
        return self.cpu_overhead[1] <= LIMIT


def measure(restarts: int, rounds: int, mebibytes: int) -> Overhead:
    """Runs everything: `rounds` a pair of servers, and as many fresh pairs as `restarts`. The order alternates."""
    data = os.urandom(mebibytes << 20)
    cpu: dict[str, list[float]] = {"without": [], "with": []}
    rate: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory(prefix="pagegate-bench-") as temporary:
        directory = Path(temporary)
        appraiser(directory)
        for _ in range(restarts):
            _pair(directory, data, rounds, cpu, rate)
    return Overhead(
        restarts * rounds,
        mebibytes,
        cpu_without=_quartiles(cpu["without"]),
        cpu_with=_quartiles(cpu["with"]),
        rate_without=_quartiles(rate["without"]),
        rate_with=_quartiles(rate["with"]),
        cpu_overhead=_quartiles([b / a - 1 for a, b in zip(cpu["without"], cpu["with"], strict=True)]),
        rate_overhead=_quartiles([a / b - 1 for a, b in zip(rate["without"], rate["with"], strict=True)]),
    )


def _pair(directory: Path, data: bytes, rounds: int, cpu: dict[str, list[float]], rate: dict[str, list[float]]) -> None:
    """One pair of fresh server processes: where memory and threads happen to lie makes some per cent, too."""
    with contextlib.ExitStack() as stack:
        endpoint, _ = stack.enter_context(_process("sink"))
        sides = {}
        for name, where in (("without", ""), ("with", endpoint)):
            pages = len(data) // eb.PAGE_SIZE
            address, pid = stack.enter_context(_process("peer", str(directory), str(pages), where))
            telemetry = _telemetry(where)
            stack.callback(telemetry.shutdown)
            client = Client(
                address,
                platform=platform(directory, CLIENT),
                appraiser=appraiser(directory),
                regions={"book": "write"},
                telemetry=telemetry,
            )
            sides[name] = (stack.enter_context(client), pid)
            client.send("book", data)
        for number in range(rounds):
            for name in ("without", "with") if number % 2 else ("with", "without"):
                client, pid = sides[name]
                started, before = time.perf_counter(), time.process_time() + _cpu_seconds(pid)
                client.send("book", data)
                rate[name].append(len(data) * 8 / 1e9 / (time.perf_counter() - started))
                cpu[name].append((time.process_time() + _cpu_seconds(pid) - before) / len(data) * (1 << 30))


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _telemetry(endpoint: str) -> Tracing:
    if not endpoint:
        return NO_TELEMETRY
    return Telemetry.start(TelemetrySettings("bench", otlp_endpoint=endpoint))


def _cpu_seconds(pid: int) -> float:
    """By the clock that the kernel keeps for each process (clock_getcpuclockid(3)): the ticks of /proc/PID/stat are
    too coarse for a round."""
    return time.clock_gettime(~pid << 3 | 2)


@contextlib.contextmanager
def _process(*arguments: str) -> Iterator[tuple[str, int]]:
    """A process of this module; gives the address it prints, and its id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pagegate.bench.telemetry", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def _say(address: str) -> None:
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()
    sys.stdin.read()


def _sink() -> None:
    """Takes whatever an OTLP exporter sends and keeps nothing."""
    server = grpc.server(ThreadPoolExecutor(2))
    take: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")
    for signal in ("trace.v1.TraceService", "metrics.v1.MetricsService"):
        handler = grpc.method_handlers_generic_handler(f"{_COLLECTOR}.{signal}", {"Export": take})
        server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _say(f"http://127.0.0.1:{port}")
    server.stop(0)


def _peer(directory: Path, pages: int, endpoint: str) -> None:
    telemetry = _telemetry(endpoint)
    with Server(
        platform=platform(directory, SERVER),
        appraiser=appraiser(directory),
        regions=[RegionSpec("book", 1 << 32, pages)],
        options=ServerOptions(listen="127.0.0.1:0"),
        telemetry=telemetry,
    ) as server:
        _say(server.address)
    telemetry.shutdown()


def main(arguments: list[str]) -> int:
    """Measures and prints; exit code 2 when the limit is not kept."""
    if arguments[:1] == ["sink"]:
        _sink()
        return 0
    if arguments[:1] == ["peer"]:
        _peer(Path(arguments[1]), int(arguments[2]), arguments[3])
        return 0
    parser = argparse.ArgumentParser(description="What telemetry costs.")
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    found = measure(given.restarts, given.rounds, given.mebibytes)
    if given.json:
        sys.stdout.write(json.dumps(asdict(found) | {"limit": LIMIT, "met": found.met}, indent=2) + "\n")
    else:
        for name in ("cpu_without", "cpu_with", "rate_without", "rate_with"):
            low, middle, high = getattr(found, name)
            unit = "s of processor a GiB" if name.startswith("cpu") else "Gbit/s"
            sys.stdout.write(f"{name:14} {middle:6.3f} ({low:.3f} to {high:.3f}) {unit}\n")
        for name in ("cpu_overhead", "rate_overhead"):
            low, middle, high = getattr(found, name)
            sys.stdout.write(f"{name:14} {middle:6.1%} ({low:.1%} to {high:.1%})\n")
    return 0 if found.met else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
