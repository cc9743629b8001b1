"""The nouns of the audit log: entries, heads, and how each becomes bytes and is read back.

Everything read from a store is hostile until parsed here; ValueError says what is wrong with it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pagegate.audit.canonical import canonical_json, parse_canonical
from pagegate.errors import AuditError

FORMAT = 1
DIGEST_BYTES = 32
LOG_ID_BYTES = 16
SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 32
MAX_ENTRY_BYTES = 16 * 1024
_FRAME_BYTES = 512
"""More than an entry's body has beside subject and details."""
MAX_TEXT = 2048
"""Characters in one value: a 4 KiB page, however encoded, does not fit."""
MAX_ITEMS = 64
"""Details of one entry, and items of one list."""

GENESIS_LABEL = b"pagegate/audit/v1 log\x00"
ENTRY_LABEL = b"pagegate/audit/v1 entry\x00"
HEAD_LABEL = b"pagegate/audit/v1 head\x00"

_KIND = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_DETAIL_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"

Detail = str | int | bool | None | Sequence[str]


class AuditKind(StrEnum):
    """What the log must hold; other kinds (lower-case words) may be added by their owners."""

    VERDICT = "verdict"
    GRANT = "grant"
    COMMIT = "commit"
    POLICY = "policy"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the log. `hash` covers all fields above it; `prev` is the hash before it."""

    seq: int
    """1 for the first entry, without gaps."""
    time: datetime
    """UTC, to the microsecond, by the writer's clock."""
    kind: str
    subject: str
    """Whom or what it is about: a session id, a region, a policy digest."""
    details: Mapping[str, Any]
    prev: bytes
    hash: bytes
    signature: bytes
    """Ed25519 over the hash: tells which entry was changed when the chain does not hold."""

    def body(self) -> bytes:
        """The canonical bytes that `hash` is made of."""
        return canonical_json(
            {
                "details": _plain(self.details),
                "kind": self.kind,
                "prev": self.prev.hex(),
                "seq": self.seq,
                "subject": self.subject,
                "time": format_time(self.time),
            }
        )


@dataclass(frozen=True, slots=True)
class SignedHead:
    """The signer's word that the log is `seq` entries long and ends in `hash`."""

    log_id: bytes
    seq: int
    hash: bytes
    time: datetime
    signature: bytes

    def body(self) -> bytes:
        """The canonical bytes that the signature covers, after HEAD_LABEL."""
        return head_body(self.log_id, self.seq, self.hash, self.time)

    def to_json(self) -> bytes:
        """One canonical line that `parse_head_line` reads back."""
        return canonical_json({"head": self.body().decode(), "signature": self.signature.hex()})


@dataclass(frozen=True, slots=True)
class Row:
    """An entry as it is stored: not believed yet."""

    seq: int
    body: bytes
    hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class LogState:
    """What a store says of itself: which log, by whose key, and how far it goes."""

    log_id: bytes
    public_key: bytes
    """Ed25519, 32 bytes. Only a key known from elsewhere makes it worth anything."""
    head: SignedHead


def genesis_hash(log_id: bytes, public_key: bytes) -> bytes:
    """`prev` of the first entry: binds the chain to this log and this key."""
    return hashlib.sha256(GENESIS_LABEL + log_id + public_key).digest()


def entry_hash(body: bytes) -> bytes:
    """SHA-256 over the label and the canonical body."""
    return hashlib.sha256(ENTRY_LABEL + body).digest()


def head_body(log_id: bytes, seq: int, digest: bytes, time: datetime) -> bytes:
    """The canonical bytes of a head."""
    return canonical_json(
        {"format": FORMAT, "hash": digest.hex(), "log": log_id.hex(), "seq": seq, "time": format_time(time)}
    )


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC with six decimals."""
    return time.astimezone(UTC).strftime(_TIME)


def check_input(kind: str, subject: str, details: Mapping[str, Detail]) -> None:
    """Refuses (AuditError, AUDIT_ENTRY_INVALID) what must not or cannot go into a log."""
    if not _KIND.fullmatch(kind):
        raise _invalid(f"kind {kind!r} is not a lower-case word of at most 64 characters")
    _check_text("subject", subject)
    if len(details) > MAX_ITEMS:
        raise _invalid(f"{len(details)} details, the limit is {MAX_ITEMS}")
    for name, value in details.items():
        if not (isinstance(name, str) and _DETAIL_NAME.fullmatch(name)):
            raise _invalid(f"detail name {name!r} is not a lower-case word of at most 64 characters")
        if isinstance(value, str):
            _check_text(name, value)
        elif isinstance(value, (list, tuple)):
            if len(value) > MAX_ITEMS:
                raise _invalid(f"detail {name} has {len(value)} items, the limit is {MAX_ITEMS}")
            for item in value:
                _check_text(name, item)
        elif value is not None and not isinstance(value, int):
            raise _invalid(f"detail {name} is {type(value).__name__}; text, integers, booleans and lists of text only")
    try:
        size = len(canonical_json([subject, _plain(details)]))
    except ValueError as error:
        raise _invalid(str(error)) from error
    if size > MAX_ENTRY_BYTES - _FRAME_BYTES:
        raise _invalid(f"{size} bytes, the limit is {MAX_ENTRY_BYTES - _FRAME_BYTES}; log a digest instead")


def parse_body(data: bytes) -> tuple[int, datetime, str, str, Mapping[str, Any], bytes]:
    """Reads an entry's canonical body: seq, time, kind, subject, details, prev. Raises ValueError."""
    if len(data) > MAX_ENTRY_BYTES:
        raise ValueError(f"{len(data)} bytes, the limit is {MAX_ENTRY_BYTES}")
    value = _object(parse_canonical(data), {"details", "kind", "prev", "seq", "subject", "time"})
    kind, subject, details = value["kind"], value["subject"], value["details"]
    if not (isinstance(kind, str) and isinstance(subject, str) and isinstance(details, dict)):
        raise ValueError("kind, subject or details have the wrong type")
    return (
        _count(value["seq"], lowest=1),
        _time(value["time"]),
        kind,
        subject,
        details,
        _hex(value["prev"], DIGEST_BYTES),
    )


def parse_entry(row: Row) -> AuditEntry:
    """Reads a stored row as an entry without judging hash or signature. Raises ValueError."""
    seq, time, kind, subject, details, prev = parse_body(row.body)
    if seq != row.seq:
        raise ValueError(f"stored as entry {row.seq} but says it is {seq}")
    return AuditEntry(seq, time, kind, subject, details, prev, row.hash, row.signature)


def parse_head(body: bytes, signature: bytes) -> SignedHead:
    """Reads a head without judging its signature. Raises ValueError."""
    value = _object(parse_canonical(body), {"format", "hash", "log", "seq", "time"})
    if value["format"] != FORMAT:
        raise ValueError(f"format {value['format']!r}, this pagegate reads {FORMAT}")
    if len(signature) != SIGNATURE_BYTES:
        raise ValueError(f"signature of {len(signature)} bytes, must be {SIGNATURE_BYTES}")
    return SignedHead(
        _hex(value["log"], LOG_ID_BYTES),
        _count(value["seq"], lowest=0),
        _hex(value["hash"], DIGEST_BYTES),
        _time(value["time"]),
        signature,
    )


def parse_head_line(line: bytes) -> SignedHead:
    """Reads what `SignedHead.to_json` wrote. Raises ValueError."""
    value = _object(parse_canonical(line), {"head", "signature"})
    if not isinstance(value["head"], str):
        raise ValueError("head is not text")
    return parse_head(value["head"].encode(), _hex(value["signature"], SIGNATURE_BYTES))


def parse_state(log_id: bytes, public_key: bytes, body: bytes, signature: bytes) -> LogState:
    """Reads what a store says of itself. Raises ValueError."""
    if len(log_id) != LOG_ID_BYTES or len(public_key) != PUBLIC_KEY_BYTES:
        raise ValueError("log id or public key has the wrong length")
    return LogState(log_id, public_key, parse_head(body, signature))


def row_line(row: Row) -> bytes:
    """One canonical line of an export."""
    return canonical_json({"entry": row.body.decode(), "hash": row.hash.hex(), "signature": row.signature.hex()})


def parse_row_line(seq: int, line: bytes) -> Row:
    """Reads what `row_line` wrote; `seq` is its place in the file. Raises ValueError."""
    value = _object(parse_canonical(line), {"entry", "hash", "signature"})
    if not isinstance(value["entry"], str):
        raise ValueError("entry is not text")
    return Row(
        seq, value["entry"].encode(), _hex(value["hash"], DIGEST_BYTES), _hex(value["signature"], SIGNATURE_BYTES)
    )


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in details.items()}


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _invalid(f"{name} is {type(value).__name__}, not text")
    if len(value) > MAX_TEXT:
        raise _invalid(f"{name} has {len(value)} characters, the limit is {MAX_TEXT}; log a digest instead")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _invalid(f"{name} holds a lone surrogate, which is not text")


def _invalid(message: str) -> AuditError:
    return AuditError("AUDIT_ENTRY_INVALID", f"audit entry refused: {message}")


def _object(value: object, keys: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != keys:
        raise ValueError(f"must be an object with exactly {', '.join(sorted(keys))}")
    return value


def _count(value: object, *, lowest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"seq {value!r} is not an integer of at least {lowest}")
    return value


def _hex(value: object, length: int) -> bytes:
    if not isinstance(value, str) or len(value) != 2 * length:
        raise ValueError(f"{value!r} is not {length} bytes in hex")
    return bytes.fromhex(value)


def _time(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError(f"time {value!r} is not text")
    return datetime.strptime(value, _TIME).replace(tzinfo=UTC)
