"""The endorsement cache: one SQLite file (WAL) that processes of a machine share and that survives SIGKILL.

It also holds what those processes must agree on: which parts are known to be absent, and whose turn it is
at KDS. Who fetches a part is settled by a kernel lock beside the file, free again the moment its owner dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import sqlite3
import struct
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pagegate.endorsements.content import Content
from pagegate.endorsements.pace import Turns
from pagegate.endorsements.part import Part, PartKind
from pagegate.errors import EndorsementError
from pagegate.evidence.model import KeyKind

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS part (
  key TEXT PRIMARY KEY, kind TEXT NOT NULL, product TEXT NOT NULL, key_kind TEXT NOT NULL, hwid BLOB NOT NULL,
  tcb BLOB NOT NULL, body BLOB NOT NULL, digest BLOB NOT NULL, source TEXT NOT NULL, made_at REAL NOT NULL,
  expires_at REAL NOT NULL, fetched_at REAL NOT NULL, used_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS absent (
  key TEXT PRIMARY KEY, reason TEXT NOT NULL, message TEXT NOT NULL, set_at REAL NOT NULL, until REAL NOT NULL);
CREATE TABLE IF NOT EXISTS turns (queue TEXT PRIMARY KEY, next_at REAL NOT NULL, held_until REAL NOT NULL);
"""
_COLUMNS = "kind, product, key_kind, hwid, tcb, body, digest, source, made_at, expires_at, fetched_at, used_at"
_BUSY_TIMEOUT = 10.0
_USE_GRANULARITY = 3600.0
"""Seconds; the time of last use is written at most this often, so that a read seldom writes."""

_OPENING = 1 << 60
"""Offset of the byte locked while the file is opened; those of parts are below 2^56."""
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)

_log = logging.getLogger(__name__)


class _DamagedError(sqlite3.DatabaseError):
    """SQLite's own check of the file found a fault."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One part as stored; times in seconds since 1970."""

    part: Part
    body: bytes
    digest: bytes
    source: str
    made_at: float
    expires_at: float
    fetched_at: float
    used_at: float

    @property
    def intact(self) -> bool:
        """The body is what was written."""
        return hashlib.sha256(self.key_and_body).digest() == self.digest

    @property
    def key_and_body(self) -> bytes:
        """What the digest covers: a row moved to another key is as bad as a changed one."""
        return self.part.key.encode() + b"\0" + self.body


class Cache:
    """Parts by key. Safe for use by several threads and processes; a damaged row is dropped, never returned."""

    def __init__(self, path: Path | None, *, max_bytes: int) -> None:
        """`path` None keeps everything in memory. Raises EndorsementError ENDORSEMENT_CACHE_UNUSABLE."""
        self.path = path
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        try:
            if path is not None:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = self._open_alone()
        except (OSError, sqlite3.Error) as error:
            raise _unusable(path, error) from error

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    def get(self, part: Part, now: float) -> Stored | None:
        """The stored part, if there is an intact one."""
        with self._transaction(write=False) as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM part WHERE key = ?", (part.key,)).fetchone()  # noqa: S608
        if row is None:
            return None
        stored = _stored(row)
        if stored is None or not stored.intact or stored.part != part:
            _log.warning("%s: the cached copy in %s is damaged; dropped", part, self.path)
            self.remove([part])
            return None
        if now - stored.used_at > _USE_GRANULARITY:
            with self._transaction() as db:
                db.execute("UPDATE part SET used_at = ? WHERE key = ?", (now, part.key))
        return stored

    def put(self, content: Content, *, source: str, now: float, fetched_at: float | None = None) -> Stored:
        """Stores checked content, forgets that it was absent, and makes room by dropping the least used leaves."""
        with self._transaction() as db:
            stored = _insert(db, content, source=source, now=now, fetched_at=now if fetched_at is None else fetched_at)
            room = self._max_bytes - len(stored.body)
            doomed = _oversize(db, room, {stored.part.key})
            db.executemany("DELETE FROM part WHERE key = ?", [(part.key,) for part in doomed])
        return stored

    def swap(self, contents: Iterable[Content], outdated: Iterable[Part], *, source: str, now: float) -> None:
        """Stores checked contents and drops the outdated parts: a reader sees all of it or nothing."""
        with self._transaction() as db:
            db.executemany("DELETE FROM part WHERE key = ?", [(part.key,) for part in outdated])
            for content in contents:
                _insert(db, content, source=source, now=now, fetched_at=now)

    def remove(self, parts: list[Part]) -> None:
        """Drops these parts."""
        with self._transaction() as db:
            db.executemany("DELETE FROM part WHERE key = ?", [(part.key,) for part in parts])

    def stored(self) -> list[Stored]:
        """Every intact part, ordered by key."""
        with self._transaction(write=False) as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM part ORDER BY key").fetchall()  # noqa: S608
        return [s for s in map(_stored, rows) if s is not None and s.intact]

    def oversize(self, max_bytes: int, *, without: Collection[Part] = ()) -> list[Part]:
        """The least recently used parts, leaves first, that must go for the rest to fit in `max_bytes` of bodies.

        `without` are those that go anyway.
        """
        with self._transaction(write=False) as db:
            return _oversize(db, max_bytes, {part.key for part in without})

    def put_absent(self, part: Part, error: EndorsementError, *, now: float, seconds: float) -> None:
        """Remembers for `seconds` that `part` was not to be had."""
        with self._transaction() as db:
            db.execute("DELETE FROM absent WHERE until <= ?", (now,))
            db.execute(
                "INSERT OR REPLACE INTO absent VALUES (?,?,?,?,?)",
                (part.key, error.reason, error.message, now, now + seconds),
            )

    def forget_absent(self, part: Part) -> None:
        """Lets the next fetch of `part` try again."""
        with self._transaction() as db:
            db.execute("DELETE FROM absent WHERE key = ?", (part.key,))

    def absent(self, part: Part, now: float) -> EndorsementError | None:
        """The remembered failure, while it holds; `retry_after` says how long that is."""
        with self._transaction(write=False) as db:
            row = db.execute("SELECT reason, message, set_at, until FROM absent WHERE key = ?", (part.key,)).fetchone()
        if row is None or not row[2] <= now < row[3]:  # a clock that was set back forgets
            return None
        return EndorsementError(
            row[0], f"{row[1]} (remembered for {row[3] - now:.0f} s more)", retry_after=row[3] - now
        )

    def take_turn(self, queue: str, *, now: float, interval: float, latest: float) -> float | None:
        """Takes the next turn in `queue`; see Pacer."""
        with self._transaction() as db:
            at, turns = _turns(db, queue).taken(now, interval, latest)
            if at is not None:
                _put_turns(db, queue, turns)
        return at

    def turns(self, queue: str) -> Turns:
        """The queue as it stands."""
        with self._transaction(write=False) as db:
            return _turns(db, queue)

    def hold(self, queue: str, until: float) -> None:
        """The server asked for silence until then."""
        with self._transaction() as db:
            _put_turns(db, queue, _turns(db, queue).held(until))

    def try_lock(self, part: Part) -> int | None:
        """Claims the right to fetch `part` on this machine; None when another process has it.

        Returns a handle for `unlock`. The claim ends with the process at the latest.
        """
        if self.path is None:
            return -1
        offset = int.from_bytes(hashlib.sha256(part.key.encode()).digest()[:7], "big")
        try:
            return _lock_byte(self.path, offset, fcntl.F_OFD_SETLK)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _unusable(self.path, error) from error

    def unlock(self, handle: int) -> None:
        """Gives up a claim of `try_lock`."""
        if handle >= 0:
            os.close(handle)

    @contextmanager
    def _transaction(self, *, write: bool = True) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if write:
                    self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    if write:
                        self._db.execute("ROLLBACK")
                    raise
                if write:
                    self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise _unusable(self.path, error) from error

    def _open_alone(self) -> sqlite3.Connection:
        """One process at a time: SQLite does not wait for its turn to switch a file to WAL."""
        if self.path is None:
            return self._open_or_set_aside()
        handle = _lock_byte(self.path, _OPENING, fcntl.F_OFD_SETLKW)
        try:
            return self._open_or_set_aside()
        finally:
            os.close(handle)

    def _open_or_set_aside(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            damaged = isinstance(error, _DamagedError) or error.sqlite_errorcode in _DAMAGED
            if self.path is None or not damaged:
                raise
            aside = self.path.with_name(f"{self.path.name}.damaged")
            _log.warning("%s is not a usable cache (%s); set aside as %s, starting empty", self.path, error, aside)
            self.path.replace(aside)
            for suffix in ("-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            return self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.path if self.path is not None else ":memory:",
            timeout=_BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if self.path is not None:
                self.path.chmod(0o600)
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _SCHEMA_VERSION):
                raise _unusable(
                    self.path, f"made by another pagegate (format {version}, this one has {_SCHEMA_VERSION})"
                )
            if version == 0:
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
            if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise _DamagedError(found)
        except BaseException:
            db.close()
            raise
        return db


def _lock_byte(cache: Path, offset: int, command: int) -> int:
    """Locks one byte of the lock file and returns the descriptor that holds the lock; closing it unlocks."""
    descriptor = os.open(f"{cache}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.fcntl(descriptor, command, struct.pack("@hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _insert(db: sqlite3.Connection, content: Content, *, source: str, now: float, fetched_at: float) -> Stored:
    part = content.part
    stored = Stored(
        part=part,
        body=content.body,
        digest=b"",
        source=source,
        made_at=content.made_at.timestamp(),
        expires_at=content.expires_at.timestamp(),
        fetched_at=fetched_at,
        used_at=now,
    )
    digest = hashlib.sha256(stored.key_and_body).digest()
    db.execute(
        f"INSERT OR REPLACE INTO part (key, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
        (
            *(part.key, part.kind.value, part.product, part.key_kind.value, part.hwid, part.tcb),
            *(stored.body, digest, stored.source),
            *(stored.made_at, stored.expires_at, stored.fetched_at, stored.used_at),
        ),
    )
    db.execute("DELETE FROM absent WHERE key = ?", (part.key,))
    return stored


def _oversize(db: sqlite3.Connection, max_bytes: int, without: set[str]) -> list[Part]:
    rows = db.execute(f"SELECT {_COLUMNS} FROM part ORDER BY kind != 'leaf', used_at, key").fetchall()  # noqa: S608
    kept = [stored for stored in map(_stored, rows) if stored is not None and stored.part.key not in without]
    total = sum(len(stored.body) for stored in kept)
    parts = []
    for stored in kept:
        if total <= max_bytes:
            break
        total -= len(stored.body)
        parts.append(stored.part)
    return parts


def _stored(row: list[object] | tuple[object, ...]) -> Stored | None:
    kind, product, key_kind, hwid, tcb, body, digest, source, *times = row
    try:
        part = Part(PartKind(str(kind)), str(product), KeyKind(str(key_kind)), _blob(hwid), _blob(tcb))
        made_at, expires_at, fetched_at, used_at = (float(str(t)) for t in times)
        return Stored(part, _blob(body), _blob(digest), str(source), made_at, expires_at, fetched_at, used_at)
    except ValueError:
        return None


def _blob(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("not a blob")
    return value


def _turns(db: sqlite3.Connection, queue: str) -> Turns:
    row = db.execute("SELECT next_at, held_until FROM turns WHERE queue = ?", (queue,)).fetchone()
    return Turns(*row) if row else Turns()


def _put_turns(db: sqlite3.Connection, queue: str, turns: Turns) -> None:
    db.execute("INSERT OR REPLACE INTO turns VALUES (?,?,?)", (queue, turns.next_at, turns.held_until))


def _unusable(path: Path | None, why: object) -> EndorsementError:
    return EndorsementError(
        "ENDORSEMENT_CACHE_UNUSABLE",
        f"endorsement cache {path}: {why}; check the directory's owner, mode and free space, or name another file",
    )
