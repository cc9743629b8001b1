"""A log as JSON lines: what an auditor takes away, and checks without the database.

First line `{"log":...,"public_key":...}`, then one line an entry, last line the signed head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pagegate.audit.canonical import canonical_json, parse_canonical
from pagegate.audit.entry import (
    LOG_ID_BYTES,
    MAX_ENTRY_BYTES,
    PUBLIC_KEY_BYTES,
    LogState,
    Row,
    parse_head_line,
    parse_row_line,
    row_line,
)
from pagegate.audit.store import LogSource
from pagegate.errors import AuditError

_MAX_LINE = 8 * MAX_ENTRY_BYTES


def export_log(source: LogSource, file: BinaryIO) -> int:
    """Writes the log as of one moment; returns the number of entries."""
    count = 0
    with source.snapshot() as (state, rows):
        file.write(canonical_json({"log": state.log_id.hex(), "public_key": state.public_key.hex()}) + b"\n")
        for row in rows:
            file.write(row_line(row) + b"\n")
            count += 1
        file.write(state.head.to_json() + b"\n")
    return count


class ExportedLog:
    """A LogSource over a file that `export_log` wrote. Reads it twice, line by line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def snapshot(self) -> Iterator[tuple[LogState, Iterator[Row]]]:
        with self._path.open("rb") as file:
            state, entries = self._frame(file)
            file.seek(0)
            yield state, self._rows(file, entries)

    def _frame(self, file: BinaryIO) -> tuple[LogState, int]:
        first, last, lines = b"", b"", 0
        for line in self._lines(file):
            first = first or line
            last, lines = line, lines + 1
        try:
            if lines < 2:
                raise ValueError(f"{lines} lines; the first names the log and the last is its head")
            value = parse_canonical(first)
            if not isinstance(value, dict) or set(value) != {"log", "public_key"}:
                raise ValueError("line 1 must be an object with log and public_key")
            log_id, public_key = bytes.fromhex(value["log"]), bytes.fromhex(value["public_key"])
            if len(log_id) != LOG_ID_BYTES or len(public_key) != PUBLIC_KEY_BYTES:
                raise ValueError("log or public_key has the wrong length")
            return LogState(log_id, public_key, parse_head_line(last)), lines - 2
        except (ValueError, TypeError) as error:
            raise self._unreadable(str(error)) from error

    def _rows(self, file: BinaryIO, entries: int) -> Iterator[Row]:
        for number, line in enumerate(self._lines(file)):
            if 1 <= number <= entries:
                try:
                    yield parse_row_line(number, line)
                except ValueError as error:
                    raise self._unreadable(f"line {number + 1}: {error}") from error

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        while line := file.readline(_MAX_LINE + 1):
            if len(line) > _MAX_LINE:
                raise self._unreadable(f"a line is longer than {_MAX_LINE} bytes")
            yield line.rstrip(b"\n")

    def _unreadable(self, why: str) -> AuditError:
        return AuditError("AUDIT_UNREADABLE", f"{self._path} is neither an SQLite audit log nor an export: {why}")
