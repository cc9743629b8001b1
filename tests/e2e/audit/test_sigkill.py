"""kill -9 of real writers at random moments: nothing acknowledged is lost, the chain holds."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pagegate.audit import AuditLog

_WRITER = Path(__file__).with_name("writer.py")
_KILLS = 25


def _write_and_kill(target: str, key: Path, names: tuple[str, ...], delay: float) -> dict[int, str]:
    """Runs one writer process a name, kills them all; returns what they acknowledged."""
    acknowledged: dict[int, str] = {}
    with ExitStack() as stack:
        writers = [stack.enter_context(_writer(target, key, name)) for name in names]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        timer = threading.Timer(delay, lambda: [writer.kill() for writer in writers])
        timer.start()
        for writer in writers:
            assert writer.stdout is not None
            for line in writer.stdout.read().decode().splitlines():
                seq, digest = line.split()
                assert int(seq) not in acknowledged, "one number was given to two entries"
                acknowledged[int(seq)] = digest
        timer.join()
    return acknowledged


@contextmanager
def _writer(target: str, key: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, str(_WRITER), target, str(key), name], stdout=subprocess.PIPE) as writer:
        try:
            yield writer
        finally:
            writer.kill()


def test_audit_log_when_writers_are_killed_then_no_acknowledged_entry_is_lost(tmp_path: Path) -> None:
    database, key = tmp_path / "audit.db", tmp_path / "audit.key"
    AuditLog.open(database, signing_key_path=key).close()
    chance = random.Random(20250101)
    acknowledged: dict[int, str] = {}
    for number in range(_KILLS):
        names = ("a", "b") if number % 3 == 0 else ("a",)
        acknowledged |= _write_and_kill(str(database), key, names, chance.uniform(0.0, 0.15))
        with AuditLog.open(database, signing_key_path=key) as log:
            stored = {entry.seq: entry.hash.hex() for entry in log.reader.entries()}
            assert acknowledged.items() <= stored.items()
            report = log.verify()
            assert report.ok, report.findings
    assert len(acknowledged) > _KILLS


@pytest.mark.parametrize("delay", [0.02, 0.1])
def test_audit_log_in_postgres_when_writers_are_killed_then_no_acknowledged_entry_is_lost(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory, delay: float
) -> None:
    key = tmp_path_factory.getbasetemp() / "postgres-audit.key"
    acknowledged = _write_and_kill(postgres_url, key, ("a", "b"), delay)
    with AuditLog.open(postgres_url, signing_key_path=key) as log:
        stored = {entry.seq: entry.hash.hex() for entry in log.reader.entries()}
        assert acknowledged.items() <= stored.items()
        assert log.verify().ok
