"""A log in PostgreSQL, for a fleet that keeps one: `postgresql://user@host/database`.

Needs the extra `postgres` (psycopg). Writers on many machines share one chain: the row of the log
is locked for the length of one commit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, LiteralString
from urllib.parse import urlsplit

from pagegate.audit.entry import LogState, Row, SignedHead, parse_state
from pagegate.audit.store import Extend
from pagegate.errors import AuditError

try:
    import psycopg
except ImportError as _missing:  # pragma: no cover - the extra is installed wherever tests run
    raise AuditError(
        "AUDIT_DRIVER_MISSING", "an audit log in PostgreSQL needs psycopg: pip install 'pagegate[postgres]'"
    ) from _missing

Connection = psycopg.Connection[tuple[Any, ...]]

_CONNECT_SECONDS = 10
_CREATE_LOCK = 0x7061676561756474
"""Advisory lock for making the tables: CREATE IF NOT EXISTS races with itself."""

_STATE: LiteralString = "SELECT log_id, public_key, head, signature FROM audit_log"
_SCHEMA: LiteralString = """
CREATE TABLE IF NOT EXISTS audit_log (
  id integer PRIMARY KEY CHECK (id = 1),
  log_id bytea NOT NULL, public_key bytea NOT NULL, head bytea NOT NULL, signature bytea NOT NULL);
CREATE TABLE IF NOT EXISTS audit_entry (
  seq bigint PRIMARY KEY, body bytea NOT NULL, hash bytea NOT NULL, signature bytea NOT NULL);
CREATE OR REPLACE FUNCTION audit_entry_refuse() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$;
CREATE OR REPLACE TRIGGER audit_entry_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entry
  FOR EACH STATEMENT EXECUTE FUNCTION audit_entry_refuse();
"""


class PostgresStore:
    """A LogStore in PostgreSQL. Thread-safe. A lost connection is made again at the next call."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def create(self, first: LogState) -> LogState:
        with self._transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_CREATE_LOCK,))
            if connection.execute("SELECT to_regclass('audit_log')").fetchone() == (None,):
                connection.execute(_SCHEMA)
            connection.execute(
                "INSERT INTO audit_log VALUES (1, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (first.log_id, first.public_key, first.head.body(), first.head.signature),
            )
            return self._state(connection)

    def append(self, extend: Extend) -> SignedHead:
        with self._transaction() as connection:
            # A server set to answer before its log is on disk must not do so here.
            connection.execute("SET LOCAL synchronous_commit TO on")
            state = self._state(connection, _STATE + " FOR UPDATE")
            found = connection.execute(
                "SELECT seq, body, hash, signature FROM audit_entry WHERE seq = %s", (state.head.seq,)
            ).fetchone()
            rows, head = extend(state, Row(*found) if found else None)
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO audit_entry VALUES (%s, %s, %s, %s)",
                    [(r.seq, r.body, r.hash, r.signature) for r in rows],
                )
            connection.execute("UPDATE audit_log SET head = %s, signature = %s", (head.body(), head.signature))
        return head

    @contextmanager
    def snapshot(self) -> Iterator[tuple[LogState, Iterator[Row]]]:
        with self._errors(), self._connect() as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            state = self._state(connection)
            # A named cursor streams: a long log is never held whole in memory.
            with connection.cursor("audit_entries") as cursor:
                cursor.execute("SELECT seq, body, hash, signature FROM audit_entry ORDER BY seq")
                yield state, (Row(*found) for found in cursor)

    def close(self) -> None:
        with self._lock:
            self._drop()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._lock, self._errors():
            if self._connection is None:
                self._connection = self._connect()
            try:
                with self._connection.transaction():
                    yield self._connection
            except psycopg.Error:
                if self._connection.broken:
                    self._drop()
                raise

    def _connect(self) -> Connection:
        return psycopg.connect(self._url, connect_timeout=_CONNECT_SECONDS)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise AuditError(
                "AUDIT_STORE",
                f"audit log {_without_password(self._url)} failed: {str(error).strip() or type(error).__name__}. "
                "Check that the server answers and that this user may write",
            ) from error

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    def _state(self, connection: Connection, query: LiteralString = _STATE) -> LogState:
        found = connection.execute(query).fetchone()
        try:
            if found is None:
                raise ValueError("the log's own row is missing")
            return parse_state(*found)
        except ValueError as error:
            raise AuditError(
                "AUDIT_TAMPERED", f"audit log {_without_password(self._url)} is not whole: {error}"
            ) from error


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
