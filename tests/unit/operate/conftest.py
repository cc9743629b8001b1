"""Real telemetry that a test can read, and kernel text as it is recorded."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator

import pytest

from pagegate.telemetry import Telemetry, TelemetrySettings

# Lines by the kernel's own format strings (pagegate.host.events names the files).
KMSG = """\
6,1200,51000000,-;SEV-SNP: RMP table physical range [0x000000bf7e800000 - 0x000000c03f0fffff]
3,1201,52000000,-;SEV-SNP: RMPUPDATE failed for PFN 12ab00, pg_level: 1, ret: 3
4,1202,53000000,-;kvm_amd: SEV: Unexpected RMP fault, no private mapping for GPA 0x7f000
6,1203,54000000,-;usb 1-1: new high-speed USB device
14,1204,55000000,-;SEV-SNP: RMPUPDATE failed for PFN 1, pg_level: 1, ret: 3
"""


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """Strict: an unlisted name raises."""
    started = Telemetry.start(TelemetrySettings("test", prometheus_port=0, strict=True))
    yield started
    started.shutdown()


@pytest.fixture
def scrape(telemetry: Telemetry) -> Callable[[], list[str]]:
    """scrape(): the lines of /metrics, numbers without a fraction."""

    def read() -> list[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{telemetry.prometheus_port}/metrics", timeout=10) as answer:
            return answer.read().decode().replace(".0\n", "\n").splitlines()

    return read


@pytest.fixture
def kmsg() -> str:
    return KMSG
