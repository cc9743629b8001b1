"""Whether a log is whole: walks the chain, then holds its end against every signed head known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pagegate.audit.entry import (
    LogState,
    Row,
    SignedHead,
    entry_hash,
    format_time,
    genesis_hash,
    parse_body,
)
from pagegate.audit.signing import entry_signed_by, head_signed_by
from pagegate.audit.store import LogSource


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not hold."""

    code: str
    """AUDIT_WRONG_KEY, AUDIT_MISSING, AUDIT_EDITED, AUDIT_BROKEN_LINK, AUDIT_UNSIGNED,
    AUDIT_TRUNCATED, AUDIT_HEAD_SIGNATURE or AUDIT_OTHER_HISTORY."""
    seq: int | None
    """The first bad entry, where one can be named."""
    message: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of walking a whole log. `ok` is true only when nothing was found."""

    log_id: bytes
    public_key: bytes
    entries: int
    """Entries walked before the first bad one."""
    head: SignedHead
    first: datetime | None
    """Time of the first entry."""
    known_heads: int
    """Signed heads from outside the store that the log was held against."""
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.findings

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        return {
            "ok": self.ok,
            "log": self.log_id.hex(),
            "public_key": self.public_key.hex(),
            "entries": self.entries,
            "head": {"seq": self.head.seq, "hash": self.head.hash.hex(), "time": format_time(self.head.time)},
            "first": format_time(self.first) if self.first else None,
            "known_heads": self.known_heads,
            "findings": [{"code": f.code, "seq": f.seq, "message": f.message} for f in self.findings],
        }


def verify_log(source: LogSource, public_key: bytes, known_heads: Sequence[SignedHead] = ()) -> VerifyReport:
    """Walks the log as of now and reports the first bad entry and what else does not hold.

    `public_key` must come from somewhere the log's keeper cannot write. `known_heads` are heads
    kept or published earlier (read them before the log: it may grow meanwhile); each must still be
    part of it. Raises AuditError only when the log cannot be read at all.
    """
    walk = _Walk(public_key, known_heads)
    with source.snapshot() as (state, rows):
        return walk.run(state, rows)


@dataclass(slots=True)
class _Walk:
    public_key: bytes
    known_heads: Sequence[SignedHead]
    findings: list[Finding] = field(default_factory=list)
    entries: int = 0
    first: datetime | None = None

    def run(self, state: LogState, rows: Iterator[Row]) -> VerifyReport:
        if state.public_key != self.public_key:
            self._found("AUDIT_WRONG_KEY", None, f"the log names key {state.public_key.hex()}, not the one given")
        last = self._chain(state, rows)
        if not self.findings:
            self._end(state, last)
        self._outside(state)
        return VerifyReport(
            state.log_id,
            self.public_key,
            self.entries,
            state.head,
            self.first,
            len(self.known_heads),
            tuple(self.findings),
        )

    def _chain(self, state: LogState, rows: Iterable[Row]) -> bytes:
        """Follows the links; returns the hash of the last good entry."""
        prev = genesis_hash(state.log_id, self.public_key)
        wanted: dict[int, set[bytes]] = {}
        for head in self.known_heads:
            wanted.setdefault(head.seq, set()).add(head.hash)
        self._compare(wanted, 0, prev)
        for seq, row in enumerate(rows, start=1):
            problem = self._entry(row, seq, prev)
            if problem is not None:
                self.findings.append(problem)
                break
            prev = row.hash
            self.entries = seq
            self._compare(wanted, seq, prev)
        return prev

    def _entry(self, row: Row, seq: int, prev: bytes) -> Finding | None:
        if row.seq != seq:
            return Finding("AUDIT_MISSING", seq, f"entry {seq} is not there; the next one is {row.seq}")
        try:
            said, time, *_, link = parse_body(row.body)
        except ValueError as error:
            return Finding("AUDIT_EDITED", seq, f"entry {seq} is not an audit entry: {error}")
        if entry_hash(row.body) != row.hash:
            return Finding("AUDIT_EDITED", seq, f"entry {seq} does not have the hash it was stored with")
        if (said, link) != (seq, prev):
            return Finding("AUDIT_BROKEN_LINK", seq, f"entry {said} does not follow the entry {seq - 1} before it")
        if not entry_signed_by(self.public_key, row.hash, row.signature):
            return Finding("AUDIT_UNSIGNED", seq, f"entry {seq} was not signed by this log's key")
        self.first = self.first or time
        return None

    def _compare(self, wanted: dict[int, set[bytes]], seq: int, digest: bytes) -> None:
        if wanted.get(seq, set()) - {digest}:
            self._found("AUDIT_OTHER_HISTORY", seq, f"entry {seq} is not the one that a known head names")

    def _end(self, state: LogState, last: bytes) -> None:
        head = state.head
        if head.log_id != state.log_id or not head_signed_by(self.public_key, head):
            self._found("AUDIT_HEAD_SIGNATURE", None, "the log's head was not signed by this log's key")
        elif head.seq > self.entries:
            self._found(
                "AUDIT_TRUNCATED", self.entries + 1, f"the head says {head.seq} entries, {self.entries} are there"
            )
        elif head.seq < self.entries:
            self._found("AUDIT_UNSIGNED", head.seq + 1, f"entries after {head.seq} are not covered by the signed head")
        elif head.hash != last:
            self._found("AUDIT_HEAD_SIGNATURE", head.seq, "the signed head names another last entry")

    def _outside(self, state: LogState) -> None:
        for head in self.known_heads:
            if not head_signed_by(self.public_key, head):
                self._found("AUDIT_HEAD_SIGNATURE", None, f"the known head for entry {head.seq} is not by this key")
            elif head.log_id != state.log_id:
                self._found("AUDIT_OTHER_HISTORY", None, f"a known head is of log {head.log_id.hex()}, this is another")
            elif head.seq > self.entries and not self.findings:
                self._found(
                    "AUDIT_TRUNCATED",
                    self.entries + 1,
                    f"a head signed at {format_time(head.time)} says {head.seq} entries, {self.entries} are there",
                )

    def _found(self, code: str, seq: int | None, message: str) -> None:
        self.findings.append(Finding(code, seq, message))
