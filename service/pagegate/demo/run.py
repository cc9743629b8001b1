"""The demo: processes, transfer, attacks, trace. Every step is the product itself, nothing is staged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import enclave_bridge as eb
from pagegate.client import Client
from pagegate.config import PeerConfig, PlatformName
from pagegate.connect import build_appraiser
from pagegate.demo.gate import Attack, attack
from pagegate.errors import PagegateError
from pagegate.platforms.model import Platform
from pagegate.platforms.simulated import SimulatedPlatform, SimulatedRoot, measurement_of
from pagegate.telemetry.receiver import OtlpReceiver
from pagegate.telemetry.records import TraceRecord
from pagegate.telemetry.tree import trace_json

SERVER_WORKLOAD = "page-server"
CLIENT_WORKLOAD = "trading-engine"
REGION = "book"
BASE_GPA = 0x1_0000_0000
Say = Callable[[str], None]

POLICY = """\
# Written by `pagegate demo`: who is believed, and what each may do. Reference values of SIMULATED workloads.
version: 1
identities:
  - name: page-server
    measurements: ["{server}"]
  - name: trading-engine
    measurements: ["{client}"]
    regions: {{ {region}: read-write }}
"""


@dataclass(frozen=True, slots=True)
class Report:
    """What the demo found."""

    bytes: int
    pages: int
    orders: int
    seconds: float
    generation: int
    digest_client: str
    digest_server: str
    resident_server: int
    """Resident memory of the server process in bytes."""
    attacks: Sequence[Attack]
    trace: TraceRecord | None

    @property
    def passed(self) -> bool:
        """True when the memory arrived whole and every attack was refused for the right reason."""
        return self.digest_client == self.digest_server and all(a.refused for a in self.attacks)

    def to_json(self) -> dict[str, Any]:
        """The same as data."""
        return {
            "passed": self.passed,
            "simulated": True,
            "transfer": {
                "bytes": self.bytes,
                "pages": self.pages,
                "orders": self.orders,
                "seconds": self.seconds,
                "generation": self.generation,
                "sha256_client": self.digest_client,
                "sha256_server": self.digest_server,
                "server_resident_bytes": self.resident_server,
            },
            "attacks": [
                {"attack": a.name, "refused": a.refused, "reason": a.reason, "expected": a.expected}
                for a in self.attacks
            ],
            "trace": trace_json(self.trace) if self.trace else None,
        }


@contextlib.contextmanager
def _process(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[str]]:
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _line(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        tail = log.read_text(encoding="utf-8")[-2000:]
        raise PagegateError("DEMO_PROCESS", f"{process.args!r} ended early:\n{tail}")
    return line.strip()


def _tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _flags(state: Path, policy: Path, workload: str, otlp: str) -> list[str]:
    return [
        "--platform=simulated",
        "--allow-simulated",
        "--offline",
        f"--state-dir={state}",
        f"--policy={policy}",
        f"--simulated-workload={workload}",
        f"--otlp-endpoint={otlp}",
    ]


def run(directory: Path, mebibytes: int, say: Say) -> Report:
    """Runs the demo in `directory`. Raises PagegateError when a process fails."""
    pagegate = [sys.executable, "-m", "pagegate"]
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    state = directory / "state"
    say("making the SIMULATED platform's root and chips (it proves nothing)")
    root = SimulatedRoot.open_or_create(state / "simulated", progress=say)
    policy = directory / "policy.yaml"
    policy.write_text(
        POLICY.format(
            server=measurement_of(SERVER_WORKLOAD.encode()).hex(),
            client=measurement_of(CLIENT_WORKLOAD.encode()).hex(),
            region=REGION,
        ),
        encoding="utf-8",
    )
    pages = mebibytes * 256 + 1
    home = directory / REGION
    spec = f"{REGION}={pages * eb.PAGE_SIZE}@{BASE_GPA:#x}:{home}"
    market_log, server_log = directory / "market.log", directory / "server.log"
    with OtlpReceiver() as receiver:
        otlp = receiver.endpoint
        with (
            _process([sys.executable, "-m", "pagegate.demo.market", str(mebibytes)], environment, market_log) as market,
            _process(
                [
                    *pagegate,
                    "serve",
                    "--listen=127.0.0.1:0",
                    f"--region={spec}",
                    *_flags(state, policy, SERVER_WORKLOAD, otlp),
                ],
                environment,
                server_log,
            ) as server,
        ):
            heap = json.loads(_line(market, market_log))
            say(f"process {heap['pid']} trades in a heap of {heap['orders']:,} orders ({mebibytes} MiB)")
            target = _line(server, server_log).removeprefix("listening on ")
            say(f"process {server.pid} serves region {REGION} on {target}")
            _tell(market)
            digest = json.loads(_line(market, market_log))
            say(
                f"trading paused after {digest['updates']:,} live updates; sha256 of the heap {digest['digest'][:16]}..."
            )
            sent = _send(
                [
                    *pagegate,
                    "send",
                    target,
                    REGION,
                    f"--pid={heap['pid']}",
                    f"--range={heap['start']:#x}-{heap['end']:#x}",
                    "--json",
                    *_flags(state, policy, CLIENT_WORKLOAD, otlp),
                ],
                environment,
            )
            say(f"{sent['pages']} pages committed as generation {sent['generation']} in {sent['seconds']:.2f} s")
            received = _digest(home / "current", mebibytes << 20)
            resident = _resident(server.pid)
            say("attacking the gate")
            attacks = _attacks(target, root, state, policy)
        trace = _transfer_trace(receiver)
    return Report(
        bytes=mebibytes << 20,
        pages=int(sent["pages"]),
        orders=int(heap["orders"]),
        seconds=float(sent["seconds"]),
        generation=int(sent["generation"]),
        digest_client=digest["digest"],
        digest_server=received,
        resident_server=resident,
        attacks=attacks,
        trace=trace,
    )


def _send(command: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PagegateError("DEMO_PROCESS", f"pagegate send failed ({done.returncode}): {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _digest(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size and (chunk := file.read(min(size, 1 << 20))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()


def _resident(pid: int) -> int:
    fields = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    anonymous = next(line for line in fields if line.startswith("Rss:"))
    return int(anonymous.split()[1]) * 1024


def _attacks(
    target: str,
    root: SimulatedRoot,
    state: Path,
    policy: Path,
) -> list[Attack]:
    config = PeerConfig(
        platform=PlatformName.SIMULATED, allow_simulated=True, offline=True, state_dir=state, policy=policy
    )
    appraiser = build_appraiser(config)
    chip = root.chip("chip-0")
    platform = SimulatedPlatform(chip, measurement=measurement_of(CLIENT_WORKLOAD.encode()))
    impostor = SimulatedPlatform(chip, measurement=measurement_of(b"something else"))

    def client_with(chosen: Platform) -> Client:
        return Client(target, platform=chosen, appraiser=appraiser, regions={REGION: "read-write"})

    with client_with(platform) as honest:
        return attack(target, REGION, honest, client_with, platform, impostor)


def _transfer_trace(receiver: OtlpReceiver) -> TraceRecord | None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for trace in receiver.traces():
            if any(span.name == "pagegate.send" for span in trace.spans) and any(
                span.name == "pagegate.server.commit" for span in trace.spans
            ):
                return trace
        time.sleep(0.1)
    return None
