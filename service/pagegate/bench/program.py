"""The benchmarks that are C programs: installed beside the bridge's Python package."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

from pagegate.errors import PagegateError


def measure(name: str, *arguments: str) -> dict[str, Any]:
    """Runs one and gives the JSON object it prints. Raises PagegateError BENCH_PROGRAM."""
    native = importlib.util.find_spec("enclave_bridge._native")
    if native is None or native.origin is None:
        raise PagegateError("BENCH_PROGRAM", "the bridge is not installed; run `make setup`")
    program = Path(native.origin).with_name(name)
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise PagegateError("BENCH_PROGRAM", f"{program} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise PagegateError("BENCH_PROGRAM", f"{name} ended with {done.returncode}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
