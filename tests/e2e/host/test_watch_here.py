"""`pagegate watch` and `doctor` on this machine's own kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pagegate.host.events import parse_line

_RUN = "import sys; from pagegate.cli import run; sys.exit(run(sys.argv[1:]))"


def _pagegate(*arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, check=False, user=user, timeout=60
    )


def test_watch_when_user_space_imitates_the_kernel_then_nothing_is_told() -> None:
    if not os.access("/dev/kmsg", os.W_OK):
        pytest.skip("NOT TESTED: /dev/kmsg is not writable here")
    with Path("/dev/kmsg").open("w") as log:
        log.write("<2>SEV-SNP: RMPUPDATE failed for PFN 600df00d, pg_level: 1, ret: 1 (a test of pagegate watch)\n")
    done = _pagegate("watch", "--once", "--json")
    assert "600df00d" not in done.stdout
    assert done.returncode in (0, 2)


def test_watch_when_it_ends_then_leaves_no_trace_instance() -> None:
    instances = Path("/sys/kernel/tracing/instances")
    before = set(instances.iterdir()) if instances.is_dir() else set()
    done = _pagegate("watch", "--once")
    assert done.returncode in (0, 1, 2)
    assert (set(instances.iterdir()) if instances.is_dir() else set()) == before


def test_doctor_when_run_without_root_then_still_reports_and_says_what_it_could_not_see() -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: dropping root needs root")
    # The interpreter's own folders are root's here, so only this call's identity is dropped, after the imports.
    drop = "import os; from pagegate.cli import doctor; os.setuid(65534); " + _RUN
    done = subprocess.run(
        [sys.executable, "-c", drop, "doctor", "--json", "--role", "host"], capture_output=True, text=True, check=False
    )
    report = json.loads(done.stdout)
    assert report["role"] == "host"
    assert done.returncode == {"pass": 0, "unknown": 1, "warn": 1, "fail": 2}[report["worst"]]
    assert report["findings"]


@pytest.mark.parametrize(
    ("event", "values"),
    [
        ("kvm/kvm_rmp_fault", (1, 0x7F000, 0x12AB, 0x80000006, 2, 0)),
        ("kvm/kvm_page_fault", (1, 0x1000, 0x7F000, 0x80000006)),
        ("exceptions/page_fault_user", (0x7F00, 0x4000, 0x80000007)),
        ("exceptions/page_fault_kernel", (0x7F00, 0x4000, 0x80000003)),
    ],
)
def test_trace_rules_when_held_against_this_kernel_then_read_its_own_format(
    event: str, values: tuple[int, ...]
) -> None:
    path = Path("/sys/kernel/tracing/events") / event / "format"
    if not os.access(path, os.R_OK):
        pytest.skip(f"NOT TESTED: {path} is not there (no tracefs, not root, or a kernel without {event})")
    line = next(line for line in path.read_text().splitlines() if line.startswith("print fmt: "))
    text = line.split('"')[1].replace("%ps", "0x%x").replace("ll", "").replace("%l", "%") % values
    parsed = parse_line(f"  CPU 0/KVM-21331   [017] d..2.  5123.456789: {Path(event).name}: {text}")
    assert parsed is not None
    assert values[-3 if "rmp" in event else -1] == parsed.fields["error_code"]
