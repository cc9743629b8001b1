"""`pagegate rotate`, as an operator calls it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from endorsement_support.kds import FakeKds
from endorsement_support.simulated import serve_root
from pagegate.cli import run
from pagegate.endorsements import Cache
from pagegate.platforms.simulated import SimulatedRoot, measurement_of
from pagegate.platforms.simulated.products import Tcb
from support.certificates import self_signed

RAISED = Tcb(5, 0, 25, 220)
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def kds() -> Iterator[FakeKds]:
    with FakeKds() as server:
        yield server


@pytest.fixture
def rotate(kds: FakeKds, simulated_root: SimulatedRoot, tmp_path: Path) -> Callable[..., int]:
    """rotate(*flags): for a machine whose firmware was just updated and whose new VCEK the KDS has."""
    name = f"rotated-{time.time_ns()}"
    simulated_root.update_firmware(name, RAISED)
    serve_root(kds, simulated_root, simulated_root.chip(name))
    flags = ["--platform=simulated", "--allow-simulated", f"--simulated-root={simulated_root._directory}"]
    flags += [f"--simulated-chip={name}", f"--state-dir={tmp_path}", f"--kds-url={kds.url}"]

    def call(*more: str) -> int:
        return run(["rotate", "endorsements", *flags, *more])

    return call


def cached(tmp_path: Path) -> list[str]:
    cache = Cache(tmp_path / "endorsements.sqlite", max_bytes=1 << 20)
    try:
        return sorted(str(stored.part) for stored in cache.stored())
    finally:
        cache.close()


def test_rotate_when_firmware_was_updated_then_the_new_vcek_is_in_force(
    rotate, tmp_path: Path, capsys: Captured
) -> None:
    assert rotate() == 0
    out = capsys.readouterr().out
    assert "in force  Milan VCEK of chip" in out
    assert "bl=5 tee=0 snp=25 ucode=220" in out
    assert len(cached(tmp_path)) == 3
    assert rotate() == 0
    assert "sessions go on" in capsys.readouterr().out


def test_rotate_when_dry_then_says_what_would_be_and_changes_nothing(rotate, tmp_path: Path, capsys: Captured) -> None:
    assert rotate("--dry-run") == 0
    assert "would be in force  Milan VCEK" in capsys.readouterr().out
    assert cached(tmp_path) == []


def test_rotate_when_a_policy_is_given_then_says_what_peers_would_hold_against_us(
    rotate, tmp_path: Path, capsys: Captured
) -> None:
    policy = tmp_path / "policy.yaml"
    floor = {"Milan": {"reported": {"microcode": 221}}}
    identity = {"name": "self", "measurements": [measurement_of(b"pagegate").hex()], "tcb": floor}
    policy.write_text(json.dumps({"version": 1, "identities": [identity]}))
    assert rotate("--policy", str(policy), "--json", "--dry-run") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["in_force"], printed["changes"], printed["failures"]) == (False, True, [])
    assert any("microcode" in line for line in printed["policy"])


def test_rotate_when_the_certificate_does_not_endorse_the_report_then_2_and_the_cache_stays(
    rotate, tmp_path: Path, simulated_root: SimulatedRoot, capsys: Captured
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nidentities: [{name: any, accept_any_measurement: true}]\nrevocation: {mode: hard}\n")
    assert rotate("--offline", "--policy", str(policy)) == 2
    shown = capsys.readouterr()
    assert "SNP_CRL_MISSING" in shown.err
    assert "the cache is as it was" in shown.out
    assert cached(tmp_path) == []


def test_rotate_when_the_cache_is_unusable_then_4(rotate, tmp_path: Path, capsys: Captured) -> None:
    assert rotate("--endorsement-cache", str(tmp_path)) == 4
    assert "ENDORSEMENT_CACHE_UNUSABLE" in capsys.readouterr().err


@pytest.fixture
def installed(tmp_path: Path) -> tuple[Path, Path]:
    """The pair that a server reads now."""
    certificate, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    _write(certificate, key)
    key.chmod(0o640)
    return certificate, key


def _write(certificate: Path, key: Path, **kw: Any) -> None:
    made, secret = self_signed(**kw)
    certificate.write_bytes(made)
    key.write_bytes(secret)


def _tls(tmp_path: Path, installed: tuple[Path, Path], *more: str) -> int:
    target = ["--tls-cert", str(installed[0]), "--tls-key", str(installed[1])]
    return run(["rotate", "tls", str(tmp_path / "new.pem"), str(tmp_path / "new.key"), *target, *more])


def test_rotate_tls_when_the_pair_is_good_then_both_files_are_replaced_with_their_modes(
    tmp_path: Path, installed: tuple[Path, Path], capsys: Captured
) -> None:
    _write(tmp_path / "new.pem", tmp_path / "new.key")
    assert _tls(tmp_path, installed, "--json") == 0
    assert json.loads(capsys.readouterr().out)["in_force"] is True
    assert [path.read_bytes() for path in installed] == [
        (tmp_path / "new.pem").read_bytes(),
        (tmp_path / "new.key").read_bytes(),
    ]
    assert installed[1].stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.key", "new.pem", "tls.key", "tls.pem"]


def test_rotate_tls_when_the_key_is_not_there_yet_then_it_is_private(tmp_path: Path, installed) -> None:
    installed[1].unlink()
    _write(tmp_path / "new.pem", tmp_path / "new.key")
    assert _tls(tmp_path, installed) == 0
    assert installed[1].stat().st_mode & 0o777 == 0o600


def test_rotate_tls_when_dry_then_nothing_is_replaced(tmp_path: Path, installed, capsys: Captured) -> None:
    before = [path.read_bytes() for path in installed]
    _write(tmp_path / "new.pem", tmp_path / "new.key")
    assert _tls(tmp_path, installed, "--dry-run") == 0
    assert "would be put in force" in capsys.readouterr().out
    assert [path.read_bytes() for path in installed] == before


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda c, k: _write(c, Path(os.devnull)), "is not the key of"),
        (lambda c, k: _write(c, k, ends_in=timedelta(minutes=-1)), "holds from"),
        (lambda c, k: _write(c, k, san=False), "no subjectAltName"),
        (lambda c, k: c.write_bytes(b"junk"), "no PEM certificate"),
        (lambda c, k: k.write_bytes(b"junk"), "no unencrypted PEM private key"),
        (lambda c, k: k.unlink(), "cannot read"),
    ],
)
def test_rotate_tls_when_the_pair_is_bad_then_refused_and_nothing_is_replaced(
    tmp_path: Path, installed, capsys: Captured, break_it, says: str
) -> None:
    before = [path.read_bytes() for path in installed]
    _write(tmp_path / "new.pem", tmp_path / "new.key")
    break_it(tmp_path / "new.pem", tmp_path / "new.key")
    assert _tls(tmp_path, installed) == 1
    assert says in capsys.readouterr().err
    assert [path.read_bytes() for path in installed] == before


def test_rotate_tls_when_the_folder_is_gone_then_says_so(tmp_path: Path, capsys: Captured) -> None:
    _write(tmp_path / "new.pem", tmp_path / "new.key")
    assert _tls(tmp_path, (tmp_path / "no" / "tls.pem", tmp_path / "no" / "tls.key")) == 1
    assert "cannot replace" in capsys.readouterr().err
