"""`pagegate doctor` and `pagegate watch`, run as the command line runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pagegate.cli import run, watch
from pagegate.host.machine import Machine
from pagegate.host.sources import KernelLines
from pagegate.platforms.simulated import SimulatedRoot, measurement_of

_GUEST = {
    "proc/cpuinfo": "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t: 1\n"
    "model name\t: X\x1b[2J\nflags\t: hypervisor\n"
}


def test_doctor_when_guest_has_no_snp_then_exits_2_and_says_so(
    build: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    machine = build(_GUEST)
    assert run(["doctor", "--root", str(machine.root)]) == 2
    shown = capsys.readouterr().out
    assert shown.startswith("This machine is a guest: worst finding is fail.")
    assert "without SEV-SNP" in shown
    assert "not-applicable bios.rmp" not in shown
    assert "\x1b[2J" not in shown


def test_doctor_when_all_is_asked_then_shows_what_does_not_apply(
    build: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "--all", "--root", str(build(_GUEST).root)]) == 2
    assert "not-applicable bios.rmp" in capsys.readouterr().out


def test_doctor_when_run_here_then_tells_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == {"pass": 0, "unknown": 1, "warn": 1, "fail": 2}[report["worst"]]
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    assert (report["role"] == "host") == ("hypervisor" not in flags)
    if report["role"] == "guest":
        (active,) = [finding for finding in report["findings"] if finding["id"] == "snp.active"]
        assert active["status"] == "fail"
        assert code == 2


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "dmesg.txt"
    path.write_text(
        "[    1.000000] kvm_amd: SEV-SNP enabled (ASIDs 1 - 509)\n"
        "[   90.000001] SEV-SNP: RMPUPDATE failed for PFN 1a2b, pg_level: 1, ret: 2\n"
    )
    return path


def test_watch_when_recording_has_a_critical_event_then_exits_2(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["watch", "--from", str(recording), "--json"]) == 2
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["kind"] for event in found] == ["snp-enabled", "rmp-update-failed"]
    assert found[1]["fields"] == {"pfn": 0x1A2B, "level": 1, "ret": 2}


def test_watch_when_recording_is_calm_then_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "calm").write_text("kvm_amd: SEV-SNP enabled (ASIDs 1 - 509)\nnothing\n")
    assert run(["watch", "--from", str(tmp_path / "calm")]) == 0
    assert "snp-enabled" in capsys.readouterr().out


def test_watch_when_recording_is_missing_then_exits_3(tmp_path: Path) -> None:
    assert run(["watch", "--from", str(tmp_path / "none")]) == 3


@pytest.mark.parametrize("once", [True, False])
def test_watch_when_nothing_can_be_seen_then_exits_1_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, *, once: bool
) -> None:
    _look_at(monkeypatch, tmp_path / "none", tmp_path / "none")
    assert run(["watch", "--once"] if once else ["watch"]) == 1
    assert capsys.readouterr().err.count("not watched") == 2


def test_watch_when_once_then_tells_what_is_there_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recording: Path, tmp_path: Path
) -> None:
    _look_at(monkeypatch, recording, tmp_path / "none")
    assert run(["watch", "--once"]) == 2
    assert "rmp-update-failed" in capsys.readouterr().out


def _look_at(monkeypatch: pytest.MonkeyPatch, log: Path, tracefs: Path) -> None:
    real = KernelLines

    def elsewhere(*, from_start: bool) -> KernelLines:
        return real(log_path=log, tracefs=tracefs, from_start=from_start)

    monkeypatch.setattr(watch, "KernelLines", elsewhere)


def test_doctor_when_policy_is_above_the_guest_then_fails_and_says_which_part(
    build: Callable[..., Machine], simulated_root: SimulatedRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = _floor(build, simulated_root, tmp_path, microcode=220, capsys=capsys)
    assert finding["status"] == "fail"
    assert "microcode" in finding["found"]
    assert "pagegate rotate endorsements" in finding["fix"]


def test_doctor_when_guest_is_at_the_policys_floor_then_passes(
    build: Callable[..., Machine], simulated_root: SimulatedRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _floor(build, simulated_root, tmp_path, microcode=219, capsys=capsys)["status"] == "pass"


def test_doctor_when_the_policy_is_broken_then_says_so(
    build: Callable[..., Machine], simulated_root: SimulatedRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = _floor(build, simulated_root, tmp_path, microcode="many", capsys=capsys)
    assert finding["status"] == "unknown"
    assert "POLICY" in finding["found"]


def _floor(
    build: Callable[..., Machine],
    root: SimulatedRoot,
    directory: Path,
    *,
    microcode: object,
    capsys: pytest.CaptureFixture[str],
) -> dict[str, str]:
    """The finding on the floor, of an SNP guest whose evidence is simulated."""
    policy = directory / "policy.yaml"
    floor = {"Milan": {"reported": {"microcode": microcode}}}
    identity = {"name": "self", "measurements": [measurement_of(b"pagegate").hex()], "tcb": floor}
    policy.write_text(json.dumps({"version": 1, "identities": [identity]}))
    run(
        [
            *("doctor", "--json", "--role", "snp-guest", "--root", str(build(_GUEST).root), "--policy", str(policy)),
            *("--platform", "simulated", "--allow-simulated", "--simulated-root", str(root._directory)),
            *("--state-dir", str(directory)),
        ]
    )
    findings = json.loads(capsys.readouterr().out)["findings"]
    return next(finding for finding in findings if finding["id"] == "firmware.floor")
