"""Real `pagegate` processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pagegate.demo.run import BASE_GPA, CLIENT_WORKLOAD, POLICY, SERVER_WORKLOAD
from pagegate.platforms.simulated import SimulatedRoot, measurement_of

PAGEGATE = [sys.executable, "-m", "pagegate"]


@dataclass(frozen=True)
class Site:
    """A directory with a policy, and the flags that both sides need."""

    directory: Path
    policy: Path
    flags: tuple[str, ...]

    def server_flags(self, region: str = "book=1MiB@0x100000000") -> list[str]:
        return ["--listen=127.0.0.1:0", f"--region={region}", f"--simulated-workload={SERVER_WORKLOAD}", *self.flags]

    @property
    def client_flags(self) -> list[str]:
        return [f"--simulated-workload={CLIENT_WORKLOAD}", *self.flags]

    @property
    def base(self) -> int:
        return BASE_GPA


@pytest.fixture
def site(tmp_path: Path, simulated_root: SimulatedRoot) -> Site:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        POLICY.format(
            server=measurement_of(SERVER_WORKLOAD.encode()).hex(),
            client=measurement_of(CLIENT_WORKLOAD.encode()).hex(),
            region="book",
        )
    )
    flags = (
        "--platform=simulated",
        "--allow-simulated",
        "--offline",
        f"--state-dir={tmp_path / 'state'}",
        f"--simulated-root={simulated_root._directory}",
        f"--policy={policy}",
    )
    return Site(tmp_path, policy, flags)


def run(
    *arguments: str, stdin: bytes = b"", before: Sequence[str] = (), patience: float = 60, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*before, *PAGEGATE, *arguments],
        input=stdin,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=patience,
        check=False,
    )


@pytest.fixture
def pagegate() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """pagegate(*arguments, stdin=..., before=[command that runs it], patience=seconds, NAME=...): runs the command."""
    return run


@dataclass
class Serving:
    process: subprocess.Popen[str]
    address: str
    log: Path


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """serving(*flags, before=[command that runs it]): a `pagegate serve` process that is listening; stopped by
    SIGTERM at the end."""
    with contextlib.ExitStack() as stack:

        def start(*flags: str, before: Sequence[str] = ()) -> Serving:
            log = tmp_path / f"serve-{len(list(tmp_path.glob('serve-*')))}.log"
            process = subprocess.Popen(
                [*before, *PAGEGATE, "serve", *flags],
                stdout=subprocess.PIPE,
                stderr=stack.enter_context(log.open("w")),
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

            def end() -> None:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=30)

            stack.callback(end)
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on "), log.read_text()
            return Serving(process, line.strip().removeprefix("listening on "), log)

        yield start
