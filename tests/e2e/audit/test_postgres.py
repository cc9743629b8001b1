"""The log in a real PostgreSQL server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pagegate.audit import AuditLog, AuditReader
from pagegate.cli import EXIT_REJECTED, run
from pagegate.errors import AuditError


@pytest.fixture
def url(postgres_url: str, request: pytest.FixtureRequest) -> str:
    """The server, with a schema of this test's own."""
    name = f"t{abs(hash(request.node.name))}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")  # type: ignore[arg-type]
    return f"{postgres_url}&options=-csearch_path%3D{name}"


@pytest.fixture
def log(url: str, tmp_path: Path) -> Iterator[AuditLog]:
    with AuditLog.open(url, signing_key_path=tmp_path / "audit.key") as opened:
        yield opened


def _tamper(url: str, statement: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE audit_entry DISABLE TRIGGER ALL")
        connection.execute(statement)  # type: ignore[arg-type]


def test_append_when_threads_and_logs_are_many_then_the_chain_holds(url: str, log: AuditLog, tmp_path: Path) -> None:
    with AuditLog.open(url, signing_key_path=tmp_path / "audit.key") as other:
        seqs: list[int] = []

        def work(number: int) -> None:
            to = (log, other)[number % 2]
            seqs.extend(to.append("commit", str(number), {"i": i, "text": "\x00"}).seq for i in range(5))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(seqs) == list(range(1, 41))
    assert log.verify().ok
    assert [entry.seq for entry in AuditReader.open(url).entries()] == list(range(1, 41))


def test_append_when_connection_was_cut_then_fails_once_and_reconnects(url: str, log: AuditLog) -> None:
    log.append("grant", "a", {})
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
    with pytest.raises(AuditError) as caught:
        log.append("grant", "b", {})
    assert caught.value.reason == "AUDIT_STORE"
    assert "not-shown" not in str(caught.value)
    assert log.append("grant", "c", {}).seq == 2
    assert log.verify().ok


@pytest.mark.parametrize(
    "statement", ["DELETE FROM audit_entry", "UPDATE audit_entry SET seq = 9", "TRUNCATE audit_entry"]
)
def test_database_when_changed_by_plain_sql_then_refuses(url: str, log: AuditLog, statement: str) -> None:
    log.append("grant", "a", {})
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        connection.execute(statement)  # type: ignore[arg-type]


def test_verify_when_edited_then_names_the_entry_and_the_command_exits_2(
    url: str, log: AuditLog, tmp_path: Path
) -> None:
    for number in range(3):
        log.append("grant", str(number), {})
    _tamper(url, "UPDATE audit_entry SET hash = decode(repeat('00', 32), 'hex') WHERE seq = 2")
    assert [(f.code, f.seq) for f in log.verify().findings] == [("AUDIT_EDITED", 2)]
    assert run(["audit", "verify", "--key", str(tmp_path / "audit.key"), url]) == EXIT_REJECTED


def test_state_when_own_row_is_gone_then_says_tampered(url: str, log: AuditLog) -> None:
    _tamper(url, "DELETE FROM audit_log")
    with pytest.raises(AuditError) as caught:
        log.append("grant", "a", {})
    assert caught.value.reason == "AUDIT_TAMPERED"


def test_commit_when_server_is_set_to_answer_early_then_still_waits_for_its_disk(url: str, tmp_path: Path) -> None:
    with AuditLog.open(f"{url}%20-csynchronous_commit%3Doff", signing_key_path=tmp_path / "k") as log:
        seen: list[object] = []
        real = log._chain

        def watched(*arguments: object) -> object:
            connection = log._store._connection  # type: ignore[attr-defined]
            seen.append(connection.execute("SHOW synchronous_commit").fetchone())
            return real(*arguments)  # type: ignore[arg-type]

        log._chain = watched  # type: ignore[method-assign, assignment]
        log.append("grant", "a", {})
    assert seen == [("on",)]


def test_open_when_server_does_not_answer_then_says_so_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(AuditError) as caught:
        AuditLog.open("postgresql://u:s3cret@/audit?host=/nonexistent", signing_key_path=tmp_path / "k")
    assert caught.value.reason == "AUDIT_STORE"
    assert "s3cret" not in str(caught.value)
