"""Appending to a log, many callers at once, and reading it back.

Callers queue their entries; one of them commits the whole queue in one transaction while the rest
wait and queue up for the next, so concurrent appends share one fsync and nobody waits for a timer.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Self

from pagegate.audit.entry import (
    LOG_ID_BYTES,
    AuditEntry,
    Detail,
    LogState,
    Row,
    SignedHead,
    check_input,
    entry_hash,
    genesis_hash,
    head_body,
    parse_entry,
)
from pagegate.audit.export import export_log
from pagegate.audit.signing import HeadFile, Signer, head_signed_by
from pagegate.audit.store import LogSource, LogStore, open_source, open_store
from pagegate.audit.verify import VerifyReport, verify_log
from pagegate.errors import AuditError

_MAX_BATCH = 512


class AuditReader:
    """Reads a log: a path (SQLite or an export) or a postgresql:// URL. Needs no private key."""

    def __init__(self, source: LogSource) -> None:
        self._source = source

    @classmethod
    def open(cls, target: str | Path) -> Self:
        """Raises AuditError when there is nothing to read."""
        return cls(open_source(str(target)))

    @property
    def state(self) -> LogState:
        """Which log this is and its head as stored, not judged."""
        with self._source.snapshot() as (state, _):
            return state

    def entries(self, *, after: int = 0) -> Iterator[AuditEntry]:
        """Entries with seq > `after` in order, not judged. Raises AuditError on an unreadable one."""
        with self._source.snapshot() as (_, rows):
            for row in rows:
                if row.seq > after:
                    yield _readable(row)

    def verify(self, public_key: bytes, known_heads: Sequence[SignedHead] = ()) -> VerifyReport:
        """See `verify_log`."""
        return verify_log(self._source, public_key, known_heads)

    def export(self, file: BinaryIO) -> int:
        """Writes the log as JSON lines; returns the number of entries."""
        return export_log(self._source, file)


@dataclass(slots=True)
class _Pending:
    """An entry on its way: exactly one of `entry` and `error` is set when it is over."""

    kind: str
    subject: str
    details: Mapping[str, Detail]
    entry: AuditEntry | None = None
    error: BaseException | None = None

    @property
    def over(self) -> bool:
        return self.entry is not None or self.error is not None


class AuditLog:
    """One log open for appending. Safe to share between threads; processes each open their own."""

    def __init__(self, store: LogStore, signer: Signer, head_file: HeadFile) -> None:
        self._store = store
        self._signer = signer
        self._head_file = head_file
        self._pid = os.getpid()
        self._turn = threading.Condition()
        self._queue: list[_Pending] = []
        self._committing = False
        kept = head_file.read()  # before the state: others may append between the two
        state = store.create(_first_state(signer))
        if state.public_key != signer.public_key:
            raise AuditError(
                "AUDIT_WRONG_KEY",
                f"this log belongs to key {state.public_key.hex()}, the key file holds {signer.public_key.hex()}. "
                "Give the right key file, or start a new log",
            )
        self._head = state.head
        self._check_head(state, kept or state.head)
        head_file.advance(state.head)

    @classmethod
    def open(cls, target: str | Path, *, signing_key_path: Path, head_path: Path | None = None) -> Self:
        """Opens or starts the log at a path or postgresql:// URL.

        The key file is made (0600) on first use; the last signed head is kept at `head_path`, by
        default beside the key. Raises AuditError; a log that was tampered with is not opened.
        """
        signer = Signer.open(signing_key_path)
        head_file = HeadFile(head_path or default_head_path(signing_key_path))
        store = open_store(str(target))
        try:
            return cls(store, signer, head_file)
        except BaseException:
            store.close()
            raise

    @property
    def head(self) -> SignedHead:
        """The last head this process has seen: publish it where the log's keeper cannot write."""
        return self._head

    @property
    def public_key(self) -> bytes:
        """32 bytes; an auditor pins it."""
        return self._signer.public_key

    @property
    def reader(self) -> AuditReader:
        """Reads the same store."""
        return AuditReader(self._store)

    def append(self, kind: str, subject: str, details: Mapping[str, Detail]) -> AuditEntry:
        """Adds one entry and returns it once it is durable. Blocks for about one fsync.

        Never put keys, secrets or page contents into `details`: digests and counts only. Raises
        AuditError: the entry must then be taken as not logged, and what it was to record must not
        go ahead.
        """
        check_input(kind, subject, details)
        if os.getpid() != self._pid:
            raise AuditError("AUDIT_FORKED", "this audit log was opened before a fork; open it again in the child")
        pending = _Pending(str(kind), subject, dict(details))
        with self._turn:
            self._queue.append(pending)
        while not pending.over:
            self._wait_or_commit(pending)
        if pending.entry is None:
            raise AuditError(
                getattr(pending.error, "reason", "AUDIT_STORE"), f"audit entry is not logged: {pending.error}"
            ) from pending.error
        return pending.entry

    def verify(self, known_heads: Sequence[SignedHead] = ()) -> VerifyReport:
        """Walks the whole log by this key, held also against the head kept beside it."""
        kept = self._head_file.read()
        return verify_log(self._store, self.public_key, [*known_heads, *([kept] if kept else [])])

    def close(self) -> None:
        """Lets go of the store. Entries are durable already."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_or_commit(self, pending: _Pending) -> None:
        """Waits while another caller commits; else commits the front of the queue itself."""
        with self._turn:
            if self._committing:
                self._turn.wait_for(lambda: pending.over or not self._committing)
            if self._committing or pending.over:
                return
            self._committing = True
            batch, self._queue = self._queue[:_MAX_BATCH], self._queue[_MAX_BATCH:]
        try:
            for member, entry in zip(batch, self._commit(batch), strict=True):
                member.entry = entry
        except BaseException as error:
            for member in batch:
                member.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            with self._turn:
                self._committing = False
                self._turn.notify_all()

    def _commit(self, batch: Sequence[_Pending]) -> list[AuditEntry]:
        entries: list[AuditEntry] = []

        def extend(state: LogState, last: Row | None) -> tuple[list[Row], SignedHead]:
            self._check_head(state, self._head)
            if state.head.seq and (last is None or last.hash != state.head.hash):
                raise _tampered(f"entry {state.head.seq} is not the one that the signed head names")
            entries.extend(self._chain(state.head, batch))
            head = self._sign_head(state.log_id, entries[-1])
            return [Row(e.seq, e.body(), e.hash, e.signature) for e in entries], head

        self._head = self._store.append(extend)
        self._head_file.advance(self._head)
        return entries

    def _chain(self, head: SignedHead, batch: Sequence[_Pending]) -> Iterator[AuditEntry]:
        seq, prev, now = head.seq, head.hash, datetime.now(UTC)
        for pending in batch:
            seq += 1
            blank = AuditEntry(seq, now, pending.kind, pending.subject, pending.details, prev, b"", b"")
            prev = entry_hash(blank.body())
            yield AuditEntry(
                seq,
                now,
                pending.kind,
                pending.subject,
                pending.details,
                blank.prev,
                prev,
                self._signer.sign_entry(prev),
            )

    def _sign_head(self, log_id: bytes, last: AuditEntry) -> SignedHead:
        body = head_body(log_id, last.seq, last.hash, last.time)
        return SignedHead(log_id, last.seq, last.hash, last.time, self._signer.sign_head(body))

    def _check_head(self, state: LogState, known: SignedHead) -> None:
        """A head is extended only if it is ours and not behind what we know: else a cut tail
        would be signed over."""
        head = state.head
        if head.log_id != state.log_id or not head_signed_by(self.public_key, head):
            raise _tampered("its head was not signed by this log's key")
        if known.log_id != head.log_id or not head_signed_by(self.public_key, known):
            raise _tampered("the head kept beside the key is of another log or key")
        if known.seq > head.seq or (known.seq == head.seq and known.hash != head.hash):
            raise _tampered(f"it ends at entry {head.seq}, but entry {known.seq} was signed at {known.time}")


def default_head_path(signing_key_path: Path) -> Path:
    """`audit.key` -> `audit.key.head`."""
    return signing_key_path.with_name(signing_key_path.name + ".head")


def _first_state(signer: Signer) -> LogState:
    log_id, now = secrets.token_bytes(LOG_ID_BYTES), datetime.now(UTC)
    genesis = genesis_hash(log_id, signer.public_key)
    signature = signer.sign_head(head_body(log_id, 0, genesis, now))
    return LogState(log_id, signer.public_key, SignedHead(log_id, 0, genesis, now, signature))


def _readable(row: Row) -> AuditEntry:
    try:
        return parse_entry(row)
    except ValueError as error:
        raise AuditError(
            "AUDIT_TAMPERED", f"entry {row.seq} cannot be read: {error}; run pagegate audit verify"
        ) from error


def _tampered(why: str) -> AuditError:
    return AuditError(
        "AUDIT_TAMPERED",
        f"the audit log is not as it was left: {why}. "
        "Keep a copy, run pagegate audit verify, and start a new log with a new key file",
    )
