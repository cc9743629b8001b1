"""Runs the comparisons. Rounds are interleaved (A, B, C, A, B, C...) so that a noisy neighbour hits all alike."""

from __future__ import annotations

import contextlib
import json
import os
import platform as machine
import random
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import enclave_bridge as eb
from pagegate.bench import kernels, ring
from pagegate.bench.pair import shake_hands
from pagegate.bench.peer import BASELINE
from pagegate.bench.setup import CLIENT, appraiser, platform
from pagegate.client import CHANNEL_OPTIONS, Client
from pagegate.errors import PagegateError
from pagegate.rpc import codec
from pagegate.rpc.codec import Batch
from pagegate.v1 import transfer_pb2 as pb

Say = Callable[[str], None]
BATCH = 256
_WINDOW = 32
_STREAMS = 4
"""A round's, of each kind: neighbouring ones are compared, and the machine is not the same for long."""


@dataclass(frozen=True, slots=True)
class Series:
    """Measurements of one thing, in `unit`."""

    unit: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def to_json(self) -> dict[str, Any]:
        low, high = self.spread
        return {"unit": self.unit, "median": self.median, "q1": low, "q3": high, "rounds": len(self.values)}


@dataclass(frozen=True, slots=True)
class Quartiles:
    """The same of a program that keeps its rounds to itself."""

    unit: str
    median: float
    spread: tuple[float, float]
    rounds: int

    def to_json(self) -> dict[str, Any]:
        low, high = self.spread
        return {"unit": self.unit, "median": self.median, "q1": low, "q3": high, "rounds": self.rounds}


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio or figure that this project has promised."""

    name: str
    value: float
    limit: float
    at_most: bool

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def to_json(self) -> dict[str, Any]:
        bound = "at_most" if self.at_most else "at_least"
        return {"name": self.name, "value": self.value, bound: self.limit, "met": self.met}


@dataclass(frozen=True, slots=True)
class Results:
    """One whole run."""

    machine: Mapping[str, str]
    series: Mapping[str, Series | Quartiles]
    targets: Sequence[Target]
    simulated: bool = field(default=True)

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": dict(self.machine),
            "simulated": self.simulated,
            "series": {name: series.to_json() for name, series in self.series.items()},
            "targets": [target.to_json() for target in self.targets],
        }


def describe_machine(bridge: eb.BridgeInfo) -> dict[str, str]:
    """What the figures were measured on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace"))
    return {
        "cpu": cpu[1] if cpu else machine.processor(),
        "cores": str(os.cpu_count()),
        "kernel": machine.release(),
        "python": machine.python_version(),
        "grpcio": grpc.__version__,
        "libcrypto": bridge.libcrypto,
        "gcm_kernel": bridge.gcm_kernel,
        "secret_memory": bridge.memory,
    }


def run(directory: Path, rounds: int, mebibytes: int, say: Say) -> Results:
    """Runs everything in `directory`. A round streams `mebibytes` each way. Raises PagegateError when the server process
    fails."""
    data = os.urandom((mebibytes << 20) // _STREAMS)
    pages = len(data) // eb.PAGE_SIZE
    say("making the SIMULATED platform's root")
    appraiser(directory)
    with _peer(directory, pages) as peer:
        with (
            _client(peer, directory) as client,
            _client(peer, directory, through_ring=True) as on_host,
            _client(peer, directory, server="isolated") as isolated,
            _client(peer, directory, server="isolated", through_ring=True) as isolated_on_host,
        ):
            series: dict[str, list[float]] = {}
            say(f"{rounds * _STREAMS} interleaved streams of {len(data) >> 20} MiB")
            contenders = {
                "stream_sealed": client,
                "stream_ring": on_host,
                "stream_isolated": isolated,
                "stream_ring_isolated": isolated_on_host,
            }
            loads = _stream_rounds(series, contenders, peer, directory, data, rounds * _STREAMS)
            say("single pages")
            _unary_rounds(series, client, peer, rounds)
            say("handshakes")
            _handshake_rounds(series, client, int(peer["pid"]), rounds)
            resident = _resident_beside_regions(int(peer["pid"]))
            say("the bridge against openssl")
            _bridge_rounds(series, rounds)
            about = describe_machine(client.bridge_info)
    say("pages through shared memory, between two processes")
    through = ring.measure(rounds, mebibytes)
    say("the kernels against OpenSSL, on one core")
    kernel = kernels.measure(101)
    named: dict[str, Series] = {name: Series(_unit(name), values) for name, values in series.items()}
    named |= {f"load_{name}": Series("% of the machine", [load]) for name, load in loads.items()}
    named["server_resident"] = Series("MB", [resident / 1e6])
    named["ring_one_page"] = Series("us", through.latency_us("median"))
    named["ring_one_page_p99"] = Series("us", through.latency_us("p99"))
    named["ring_to_server"] = Series("Gbps", through.gbps(BATCH, reverse=False))
    named["ring_to_client"] = Series("Gbps", through.gbps(BATCH, reverse=True))
    targets = [
        *_targets(named),
        Target(
            f"{kernel.best} against OpenSSL EVP, sealing 4 KiB, times",
            kernel.times_openssl,
            kernels.TIMES_OPENSSL,
            at_most=False,
        ),
    ]
    return Results(about, {**named, **_kernel_series(kernel)}, targets)


def _kernel_series(kernel: kernels.Kernels) -> dict[str, Quartiles]:
    def of(row: Mapping[str, Any]) -> Quartiles:
        figures = row["gigabytes_a_second"]
        return Quartiles("GB/s", figures["median"], (figures["q1"], figures["q3"]), kernel.found["rounds"])

    return {f"kernel_{row['name']}_{row['operation']}": of(row) for row in kernel.found["results"]}


def _client(
    peer: Mapping[str, str], directory: Path, *, server: str = "pagegate", through_ring: bool = False
) -> Client:
    return Client(
        peer[server],
        platform=platform(directory, CLIENT),
        appraiser=appraiser(directory),
        regions={"book": "write"},
        ring=through_ring,
    )


def _unit(name: str) -> str:
    return {"stream": "Gbps", "unary": "us", "handshake": "ms", "bridge": "GB/s"}[name.split("_", maxsplit=1)[0]]


def _targets(series: Mapping[str, Series]) -> list[Target]:
    def ratio(a: str, b: str) -> float:
        # Round by round: both sides of a pair saw the same machine.
        return statistics.median(x / y for x, y in zip(series[a].values, series[b].values, strict=True))

    return [
        Target("sealed streaming, Gbps", series["stream_sealed"].median, 2.4, at_most=False),
        Target(
            "sealed streaming against unsealed, slower by", 1 - ratio("stream_sealed", "stream_unsealed"), 0.12, True
        ),
        Target("sealed streaming against gRPC over TLS, times", ratio("stream_sealed", "stream_tls"), 1.0, False),
        Target(
            "streaming into an isolated bridge against in-process, slower by",
            1 - ratio("stream_isolated", "stream_sealed"),
            0.10,
            True,
        ),
        Target("TransferPage against a bare unary call, times", ratio("unary_sealed", "unary_bare"), 1.5, True),
        Target("handshake, ms of CPU on both sides together", series["handshake_cpu"].median, 15.0, True),
        Target("server resident beside its regions, MB", series["server_resident"].median, 150.0, True),
        Target("one page through the ring, us", series["ring_one_page"].median, ring.MEDIAN_LIMIT_US, True),
        Target("the same, 99th percentile, us", series["ring_one_page_p99"].median, ring.P99_LIMIT_US, True),
        Target("ring to the server, Gbps", series["ring_to_server"].median, ring.GBPS_LIMIT, at_most=False),
        Target("ring to the client, Gbps", series["ring_to_client"].median, ring.GBPS_LIMIT, at_most=False),
    ]


@contextlib.contextmanager
def _peer(directory: Path, pages: int) -> Iterator[dict[str, str]]:
    with (directory / "peer.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pagegate.bench.peer", str(directory), str(pages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise PagegateError(
                    "BENCH_PEER", f"the server process ended:\n{(directory / 'peer.log').read_text(encoding='utf-8')}"
                )
            yield json.loads(line)
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _stream_rounds(
    series: dict[str, list[float]],
    clients: Mapping[str, Client],
    peer: Mapping[str, str],
    directory: Path,
    data: bytes,
    rounds: int,
) -> dict[str, float]:
    """Fills in the rates. Returns what share of the machine's processors each contender kept busy, in per cent."""
    root = (directory / "tls.pem").read_bytes()
    plain = grpc.insecure_channel(peer["plain"], options=CHANNEL_OPTIONS)
    secured = grpc.secure_channel(peer["tls"], grpc.ssl_channel_credentials(root), options=CHANNEL_OPTIONS)

    def sending(client: Client) -> Callable[[], object]:
        return lambda: client.send("book", data)

    contenders: dict[str, Callable[[], object]] = {
        "stream_unsealed": lambda: _baseline_stream(plain, data),
        "stream_tls": lambda: _baseline_stream(secured, data),
    }
    contenders |= {name: sending(client) for name, client in clients.items()}
    pids = [int(peer["pid"]), int(peer["bridge_pid"])]
    busy, lasted = dict.fromkeys(contenders, 0.0), dict.fromkeys(contenders, 0.0)
    for contender in contenders.values():
        contender()
    if not all(client.ring_in_use for name, client in clients.items() if "ring" in name):
        raise PagegateError("BENCH_PEER", "the server process offers no shared memory")
    for _ in range(rounds):
        for name, contender in random.sample([*contenders.items()], len(contenders)):
            started, cpu = time.perf_counter(), time.process_time() + sum(map(_cpu_seconds, pids))
            contender()
            elapsed = time.perf_counter() - started
            busy[name] += time.process_time() + sum(map(_cpu_seconds, pids)) - cpu
            lasted[name] += elapsed
            series.setdefault(name, []).append(len(data) * 8 / 1e9 / elapsed)
    plain.close()
    secured.close()
    cores = os.cpu_count() or 1
    return {name: 100 * busy[name] / lasted[name] / cores for name in contenders}


def _baseline_stream(channel: grpc.Channel, data: bytes) -> None:
    """The client's side of the baseline: the same batches, window and acknowledgements, unsealed."""
    call_factory = channel.stream_stream(
        f"/{BASELINE}/TransferPages", codec.encode, pb.TransferPagesResponse.FromString
    )
    condition = threading.Condition()
    acked = 0
    view = memoryview(data)
    step = BATCH * eb.PAGE_SIZE

    def requests() -> Iterator[Any]:
        yield pb.TransferPagesRequest(begin=pb.TransferBegin())
        for number, start in enumerate(range(0, len(data), step)):
            with condition:
                condition.wait_for(lambda n=number: n - acked < _WINDOW)  # type: ignore[misc]
            yield Batch(view[start : start + step], number)

    for response in call_factory(requests()):
        if response.WhichOneof("step") == "ack":
            with condition:
                acked = response.ack.batches
                condition.notify_all()


def _unary_rounds(series: dict[str, list[float]], client: Client, peer: Mapping[str, str], rounds: int) -> None:
    plain = grpc.insecure_channel(peer["plain"], options=CHANNEL_OPTIONS)
    bare = plain.unary_unary(
        f"/{BASELINE}/TransferPage", pb.TransferPageRequest.SerializeToString, pb.TransferPageResponse.FromString
    )
    page = os.urandom(eb.PAGE_SIZE)
    base = client.session.regions["book"].base_gpa
    calls: dict[str, Callable[[], object]] = {
        "unary_sealed": lambda: client.send_page("book", base, page),
        "unary_bare": lambda: bare(pb.TransferPageRequest(session_id=bytes(16), record=page)),
    }
    for call in calls.values():
        for _ in range(20):
            call()
    for _ in range(rounds * 4):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(25):
                call()
            series.setdefault(name, []).append((time.perf_counter() - started) / 25 * 1e6)
    plain.close()


def _handshake_rounds(series: dict[str, list[float]], client: Client, pid: int, rounds: int) -> None:
    for _ in range(rounds):
        count = 20
        started, cpu = time.perf_counter(), time.process_time() + _cpu_seconds(pid)
        for _ in range(count):
            client.attest()
        spent = time.process_time() + _cpu_seconds(pid) - cpu
        series.setdefault("handshake_cpu", []).append(spent / count * 1e3)
        series.setdefault("handshake_wall", []).append((time.perf_counter() - started) / count * 1e3)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def _resident_beside_regions(pid: int) -> int:
    """Resident bytes of a process without the mappings of region pages."""
    total, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = "memfd:pagegate:" in line
        elif line.startswith("Rss:") and not ours:
            total += int(line.split()[1]) * 1024
    return total


def _bridge_rounds(series: dict[str, list[float]], rounds: int) -> None:
    """Seal and open of 4 KiB pages in batches, on this core, against openssl(1) and cryptography's AESGCM."""
    with _loopback() as (sender, receiver, transfer):
        plain = os.urandom(BATCH * eb.PAGE_SIZE)
        records = bytearray(BATCH * eb.RECORD_SIZE)
        aead, header = AESGCM(os.urandom(32)), bytes(eb.HEADER_SIZE)
        count = 64
        for _ in range(rounds):
            sealing = opening = 0
            for _ in range(count):
                sealing += sender.seal_into(
                    None, region=1, first_gpa=0, plain=plain, out=memoryview(records)
                ).nanoseconds
                opening += receiver.open(transfer, records).nanoseconds
            size = count * len(plain)
            series.setdefault("bridge_seal", []).append(size / sealing)
            series.setdefault("bridge_open", []).append(size / opening)
            started = time.perf_counter()
            for number in range(2 * BATCH):
                aead.encrypt(number.to_bytes(12, "big"), plain[: eb.PAGE_SIZE], header)
            series.setdefault("bridge_cryptography", []).append(
                2 * BATCH * eb.PAGE_SIZE / 1e9 / (time.perf_counter() - started)
            )
            if (rate := _openssl_speed()) is not None:
                series.setdefault("bridge_openssl_speed", []).append(rate)


def _openssl_speed() -> float | None:
    """GB/s of `openssl speed -evp aes-256-gcm -bytes 4096`; None where there is no openssl(1)."""
    if shutil.which("openssl") is None:
        return None
    command = ["openssl", "speed", "-elapsed", "-seconds", "1", "-bytes", "4096", "-evp", "aes-256-gcm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(r"(?im)^aes-256-gcm\s+([\d.]+)k", done.stdout)
    return float(match[1]) * 1000 / 1e9 if match else None


@contextlib.contextmanager
def _loopback() -> Iterator[tuple[eb.Session, eb.Session, eb.Transfer]]:
    """Two sessions of one handshake in this process, and a receiving window of one batch."""
    with eb.Bridge(max_sessions=2, max_handshakes=2) as bridge:
        sending, receiving = shake_hands(bridge, bridge)
        transfer = bridge.transfer(bytes(16), region=1, base_gpa=0, pages=BATCH)
        transfer.target_memory(bytearray(BATCH * eb.PAGE_SIZE))
        try:
            yield sending, receiving, transfer
        finally:
            for handle in (transfer, sending, receiving):
                handle.close()
