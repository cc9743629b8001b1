"""A real OpenTelemetry Collector, built from its own Go modules (collector/, versions locked by go.sum)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pagegate.demo.run import CLIENT_WORKLOAD, POLICY, SERVER_WORKLOAD
from pagegate.platforms.simulated import SimulatedRoot, measurement_of

SOURCE = Path(__file__).parent / "collector"


@dataclass(frozen=True)
class Collector:
    """Where to send, and what has been received."""

    grpc: str
    http: str
    file: Path

    def wait_for_spans(self, trace_id: str, count: int) -> list[dict[str, Any]]:
        """Waits until so many spans of a trace are here; returns what is here in the end."""
        deadline = time.monotonic() + 30
        while len(self.spans(trace_id)) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.spans(trace_id)

    def spans(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans of a trace as the Collector wrote them, each with its service's name."""
        return [
            {**span, "service": attribute(group["resource"]["attributes"], "service.name")}
            for line in self._lines()
            for group in line.get("resourceSpans", [])
            for scope in group["scopeSpans"]
            for span in scope["spans"]
            if span["traceId"] == trace_id
        ]

    def metrics(self) -> set[str]:
        """Names of the metrics that came."""
        return {
            metric["name"]
            for line in self._lines()
            for group in line.get("resourceMetrics", [])
            for scope in group["scopeMetrics"]
            for metric in scope["metrics"]
        }

    def exemplars(self) -> dict[str, set[str]]:
        """Trace ids by metric, from the exemplars of its data points."""
        found: dict[str, set[str]] = {}
        for line in self._lines():
            for group in line.get("resourceMetrics", []):
                for scope in group["scopeMetrics"]:
                    for metric in scope["metrics"]:
                        for point in metric.get("histogram", {}).get("dataPoints", []):
                            traces = {one["traceId"] for one in point.get("exemplars", [])}
                            found.setdefault(metric["name"], set()).update(traces)
        return found

    def _lines(self) -> list[dict[str, Any]]:
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def attribute(attributes: list[dict[str, Any]], key: str) -> Any:
    """The value of one attribute in OTLP's JSON; None when absent."""
    return next((next(iter(item["value"].values())) for item in attributes if item["key"] == key), None)


TRADER = Path(__file__).with_name("trader.py")
BATCHES = 3
"""That the trading service sends."""

Publish = Callable[..., str]


@pytest.fixture
def site(tmp_path: Path, simulated_root: SimulatedRoot) -> Path:
    """A policy in a directory."""
    measured = {
        "server": measurement_of(SERVER_WORKLOAD.encode()).hex(),
        "client": measurement_of(CLIENT_WORKLOAD.encode()).hex(),
    }
    (tmp_path / "policy.yaml").write_text(POLICY.format(region="book", **measured))
    return tmp_path


@pytest.fixture
def publish(site: Path, simulated_root: SimulatedRoot) -> Publish:
    """publish(grpc, endpoint, ...): runs `pagegate serve` and the trading service to their ends; gives the trace's id."""

    @contextmanager
    def serving(endpoint: str, ratio: float):
        flags = [f"--simulated-workload={SERVER_WORKLOAD}", "--region=book=4MiB@0x100000000", "--listen=127.0.0.1:0"]
        flags += ["--platform=simulated", "--allow-simulated", "--offline", f"--state-dir={site / 'server'}"]
        flags += [f"--simulated-root={simulated_root._directory}", f"--policy={site / 'policy.yaml'}"]
        flags += [f"--otlp-endpoint={endpoint}", f"--sample-ratio={ratio}"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with (site / "serve.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pagegate", "serve", *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
                assert line.startswith("listening on "), (site / "serve.log").read_text()
                yield line.strip().removeprefix("listening on ")
            finally:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=60)

    def run(
        grpc: str, endpoint: str = "", protocol: str = "grpc", *, ratio: float = 1.0, workload: str = CLIENT_WORKLOAD
    ) -> str:
        with serving(grpc, ratio) as address:
            command = [sys.executable, str(TRADER), grpc, endpoint or grpc, protocol, str(ratio), address, "book"]
            command += [str(BATCHES << 20), workload, str(site / "client"), str(simulated_root._directory)]
            done = subprocess.run(
                [*command, str(site / "policy.yaml")], stdout=subprocess.PIPE, text=True, timeout=120, check=False
            )
        assert done.returncode == (workload != CLIENT_WORKLOAD)
        return done.stdout.strip()

    return run


@pytest.fixture(scope="session")
def collector_binary() -> Path:
    go = shutil.which("go")
    if go is None:
        message = "no Go toolchain of 1.25 or later: the real OpenTelemetry Collector cannot be built"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pagegate"
    cache.mkdir(parents=True, exist_ok=True)
    # Named by its sources: worktrees of different states share the cache.
    sources = b"".join((SOURCE / name).read_bytes() for name in ("go.mod", "go.sum", "main.go"))
    binary = cache / f"test-collector-{sha256(sources).hexdigest()[:12]}"
    subprocess.run(
        [go, "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(binary), "."],
        cwd=SOURCE,
        check=True,
    )
    return binary


@pytest.fixture
def collector(collector_binary: Path, tmp_path: Path) -> Iterator[Collector]:
    with running(collector_binary, tmp_path) as started:
        yield started


@contextlib.contextmanager
def running(
    binary: Path, directory: Path, *configs: str, overrides: dict[str, Any] | None = None, **environment: str
) -> Iterator[Collector]:
    """A Collector of `configs` (URIs, merged in order) and `overrides`, that receives here and writes to a file."""
    grpc, http = free_port(), free_port()
    out = directory / "received.jsonl"
    ours = {
        "receivers": {
            "otlp": {
                "protocols": {"grpc": {"endpoint": f"127.0.0.1:{grpc}"}, "http": {"endpoint": f"127.0.0.1:{http}"}}
            }
        },
        "exporters": {"file": {"path": str(out), "flush_interval": "100ms"}},
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {kind: {"receivers": ["otlp"], "exporters": ["file"]} for kind in ("traces", "metrics")},
        },
        **(overrides or {}),
    }
    flags = [f"--config={config}" for config in (*configs, f"yaml:{json.dumps(ours)}")]
    log = (directory / "collector.log").open("wb")
    with (
        log,
        subprocess.Popen([binary, *flags], stdout=log, stderr=log, env={**os.environ, **environment}) as process,
    ):
        try:
            for port in (grpc, http):
                wait_until_open(port, process, directory / "collector.log")
            yield Collector(f"http://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}", out)
        finally:
            process.terminate()
            process.wait(timeout=20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"the Collector does not listen: {log.read_text()}")
