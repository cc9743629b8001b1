"""Where a log is kept: one Protocol, opened by path or URL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pagegate.audit.entry import LogState, Row, SignedHead
from pagegate.errors import AuditError

Extend = Callable[[LogState, Row | None], tuple[Sequence[Row], SignedHead]]
"""Given the locked state and its last row, returns the rows to add and the head after them."""


class LogSource(Protocol):
    """A log that can be read."""

    def snapshot(self) -> AbstractContextManager[tuple[LogState, Iterator[Row]]]:
        """The state and the rows in order, as of one moment, over a connection of its own: a
        long read keeps nobody from appending. Raises AuditError."""
        ...


class LogStore(LogSource, Protocol):
    """A log that can be written, by many threads. Every call is one transaction and raises AuditError."""

    def create(self, first: LogState) -> LogState:
        """Makes the tables and the log unless they exist; returns the state that is there."""
        ...

    def append(self, extend: Extend) -> SignedHead:
        """Locks the log against every other writer, adds what `extend` returns, makes it durable
        and returns the head. What `extend` raises undoes everything."""
        ...

    def close(self) -> None: ...


def is_url(target: str) -> bool:
    """True for a PostgreSQL URL, False for a path."""
    return target.startswith(("postgresql://", "postgres://"))


def open_store(target: str) -> LogStore:
    """The store for a path (SQLite) or a postgresql:// URL."""
    if is_url(target):
        from pagegate.audit.postgres import PostgresStore  # noqa: PLC0415 - an optional extra

        return PostgresStore(target)
    _refuse_other_schemes(target)
    from pagegate.audit.sqlite import SqliteStore  # noqa: PLC0415

    return SqliteStore(Path(target))


def open_source(target: str) -> LogSource:
    """Something to read: a PostgreSQL URL, an SQLite file, or a file made by `export`."""
    if is_url(target):
        return open_store(target)
    _refuse_other_schemes(target)
    from pagegate.audit.export import ExportedLog  # noqa: PLC0415
    from pagegate.audit.sqlite import SqliteSource  # noqa: PLC0415

    path = Path(target)
    try:
        with path.open("rb") as file:
            is_database = file.read(16) == b"SQLite format 3\x00"
    except OSError as error:
        raise AuditError("AUDIT_UNREADABLE", f"audit log {path} cannot be read: {error.strerror}") from error
    return SqliteSource(path) if is_database else ExportedLog(path)


def _refuse_other_schemes(target: str) -> None:
    if "://" in target:
        scheme = target.split("://", 1)[0]
        raise AuditError("AUDIT_URL", f"audit log URL scheme {scheme!r} is not known; use a path or postgresql://")
