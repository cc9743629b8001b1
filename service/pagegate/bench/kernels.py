"""AES-GCM on one core: each kernel that this CPU can run against OpenSSL's EVP, measured in C in one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagegate.bench import program

_PROGRAM = "pagegate-bench-gcm"
TIMES_OPENSSL = 3.0
"""What this project has promised of the fastest kernel, sealing 4 KiB pages with AES-256-GCM."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """One run of the program (enclave_bridge/kernels/bench/bench_gcm.c says what is in a figure)."""

    found: Mapping[str, Any]

    @property
    def best(self) -> str:
        """The kernel that a bridge takes on this CPU; "openssl" where there is no other."""
        name = str(self.found["best_kernel"])
        return name if any(row["name"] == name for row in self.found["results"]) else "openssl"

    def row(self, name: str, operation: str = "seal") -> Mapping[str, Any]:
        """Figures of one kernel."""
        (row,) = [r for r in self.found["results"] if (r["name"], r["operation"]) == (name, operation)]
        return dict(row)

    @property
    def times_openssl(self) -> float:
        """Sealing by the best kernel, a round against OpenSSL in the same round; the median."""
        return float(self.row(self.best).get("times_openssl", {"median": 1.0})["median"])


def measure(rounds: int) -> Kernels:
    """`rounds` interleaved rounds (odd, 3 to 1001) of all kernels. Raises PagegateError BENCH_PROGRAM."""
    return Kernels(program.measure(_PROGRAM, "--rounds", str(rounds)))
