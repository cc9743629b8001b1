"""A log in a temporary folder, and hands that tamper with it below the API."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pagegate.audit import AuditLog


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "audit.key"


@pytest.fixture
def log(database: Path, key: Path) -> Iterator[AuditLog]:
    with AuditLog.open(database, signing_key_path=key) as opened:
        yield opened


@pytest.fixture
def filled(log: AuditLog) -> AuditLog:
    """Ten entries."""
    for number in range(1, 11):
        log.append("verdict", f"session-{number}", {"accepted": number % 2 == 0, "number": number})
    return log


@pytest.fixture
def tamper(database: Path) -> Callable[..., None]:
    """Runs SQL as someone who owns the file: triggers dropped first."""

    def run(statement: str, *values: object) -> None:
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("DROP TRIGGER IF EXISTS audit_entry_no_update")
            connection.execute("DROP TRIGGER IF EXISTS audit_entry_no_delete")
            connection.execute(statement, values)

    return run
