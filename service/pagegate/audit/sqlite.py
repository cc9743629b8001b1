"""The default store: one SQLite file in WAL mode, every acknowledged transaction fsynced."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from pagegate.audit.entry import LogState, Row, SignedHead, parse_state
from pagegate.audit.store import Extend
from pagegate.errors import AuditError

_BUSY_MS = 30_000

# The triggers stop accidents and plain SQL; the chain is what shows a determined hand.
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS audit_log (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    log_id BLOB NOT NULL, public_key BLOB NOT NULL, head BLOB NOT NULL, signature BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS audit_entry (
    seq INTEGER PRIMARY KEY, body BLOB NOT NULL, hash BLOB NOT NULL, signature BLOB NOT NULL)""",
    """CREATE TRIGGER IF NOT EXISTS audit_entry_no_update BEFORE UPDATE ON audit_entry
    BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
    """CREATE TRIGGER IF NOT EXISTS audit_entry_no_delete BEFORE DELETE ON audit_entry
    BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
)


class SqliteSource:
    """A LogSource: reads one file, also while others write it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def snapshot(self) -> Iterator[tuple[LogState, Iterator[Row]]]:
        with self._errors(), closing(_connect_reader(self._path)) as connection:
            connection.execute("BEGIN")
            state = self._state(connection)
            cursor = connection.execute("SELECT seq, body, hash, signature FROM audit_entry ORDER BY seq")
            yield state, map(_row, cursor)

    def _state(self, connection: sqlite3.Connection) -> LogState:
        found = connection.execute("SELECT log_id, public_key, head, signature FROM audit_log").fetchone()
        try:
            if found is None or not all(isinstance(value, bytes) for value in found):
                raise ValueError("the log's own row is missing or of the wrong type")
            return parse_state(*found)
        except ValueError as error:
            raise AuditError("AUDIT_TAMPERED", f"audit log {self._path} is not whole: {error}") from error

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise AuditError(
                "AUDIT_STORE",
                f"audit log {self._path} cannot be used: {error}. Check the folder, its free space and its owner",
            ) from error


class SqliteStore(SqliteSource):
    """A LogStore in one file. Thread-safe; many processes may hold the same file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = threading.Lock()
        with self._errors():
            self._connection = _connect_writer(path)

    def create(self, first: LogState) -> LogState:
        with self._transaction() as connection:
            for statement in _SCHEMA:
                connection.execute(statement)
            if connection.execute("SELECT count(*) FROM audit_log").fetchone() == (0,):
                connection.execute(
                    "INSERT INTO audit_log VALUES (1, ?, ?, ?, ?)",
                    (first.log_id, first.public_key, first.head.body(), first.head.signature),
                )
            return self._state(connection)

    def append(self, extend: Extend) -> SignedHead:
        with self._transaction() as connection:
            state = self._state(connection)
            found = connection.execute(
                "SELECT seq, body, hash, signature FROM audit_entry WHERE seq = ?", (state.head.seq,)
            ).fetchone()
            rows, head = extend(state, _row(found) if found else None)
            connection.executemany(
                "INSERT INTO audit_entry VALUES (?, ?, ?, ?)", [(r.seq, r.body, r.hash, r.signature) for r in rows]
            )
            connection.execute("UPDATE audit_log SET head = ?, signature = ?", (head.body(), head.signature))
        return head

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")


def _connect_writer(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000)
    try:
        if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise sqlite3.OperationalError("this file system cannot hold a write-ahead log")
        connection.execute("PRAGMA synchronous = FULL")  # NORMAL would not fsync the WAL at commit
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _connect_reader(path: Path) -> sqlite3.Connection:
    name = quote(str(path.absolute()))
    connection = sqlite3.connect(f"file:{name}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema")
    except sqlite3.OperationalError:
        # A WAL database on a read-only medium has no place for its index; safe to read as it is
        # only when no log is left beside it.
        connection.close()
        if Path(f"{path}-wal").exists():
            raise
        connection = sqlite3.connect(
            f"file:{name}?immutable=1", uri=True, isolation_level=None, check_same_thread=False
        )
    return connection


def _row(found: tuple[object, ...]) -> Row:
    """Takes any stored value; what is not bytes cannot verify and is shown as it is."""
    seq, *rest = found
    body, digest, signature = (v if isinstance(v, bytes) else str(v).encode() for v in rest)
    return Row(seq if isinstance(seq, int) else -1, body, digest, signature)
