"""The benchmarks that are C programs: installed beside the bridge's Python package."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from pagegate.errors import PagegateError


def _path_of(name: str) -> Path:
    """Where it is. Raises PagegateError BENCH_PROGRAM."""
    native = importlib.util.find_spec("enclave_bridge._native")
    if native is None or native.origin is None:
        raise PagegateError("BENCH_PROGRAM", "the bridge is not installed; run `make setup`")
    return Path(native.origin).with_name(name)


def measure(name: str, *arguments: str) -> dict[str, Any]:
    """Runs one and gives the JSON object it prints. Raises PagegateError BENCH_PROGRAM."""
    program = _path_of(name)
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise _cannot_run(program, error) from error
    if done.returncode:
        raise PagegateError("BENCH_PROGRAM", f"{name} ended with {done.returncode}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Awake:
    """A process that keeps a core awake while it is told to, and ends with the block.

    Raises PagegateError BENCH_PROGRAM.
    """

    def __init__(self) -> None:
        program = _path_of("pagegate-bench-awake")
        try:
            self._process = subprocess.Popen([program])
        except OSError as error:
            raise _cannot_run(program, error) from error
        self.sleep()

    def __enter__(self) -> Awake:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def on(self, core: int) -> None:
        """Keeps this core awake from now on."""
        os.sched_setaffinity(self._process.pid, {core})
        self._process.send_signal(signal.SIGCONT)

    def sleep(self) -> None:
        """Keeps none awake."""
        self._process.send_signal(signal.SIGSTOP)


def _cannot_run(program: Path, error: OSError) -> PagegateError:
    return PagegateError("BENCH_PROGRAM", f"{program} cannot be run: {error.strerror}")
