"""What was done to a log is found and named."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pagegate.audit import AuditLog, AuditReader, VerifyReport
from pagegate.audit.entry import entry_hash
from pagegate.audit.signing import Signer
from pagegate.errors import AuditError

Tamper = Callable[..., None]


def _first(report: VerifyReport) -> tuple[str, int | None]:
    assert not report.ok
    return report.findings[0].code, report.findings[0].seq


def _body(database: Path, seq: int) -> bytes:
    with closing(sqlite3.connect(database)) as connection:
        body: bytes = connection.execute("SELECT body FROM audit_entry WHERE seq = ?", (seq,)).fetchone()[0]
    return body


def test_verify_when_untouched_then_is_whole(filled: AuditLog) -> None:
    report = filled.verify()
    assert report.ok
    assert (report.entries, report.head.seq, report.known_heads) == (10, 10, 1)


def test_verify_when_log_is_empty_then_is_whole(log: AuditLog) -> None:
    assert log.verify().ok


@pytest.mark.parametrize("seq", [1, 5, 10])
def test_verify_when_entry_was_edited_then_names_it(filled: AuditLog, tamper: Tamper, database: Path, seq: int) -> None:
    edited = _body(database, seq).replace(b"session", b"sessiom")
    tamper("UPDATE audit_entry SET body = ? WHERE seq = ?", edited, seq)
    assert _first(filled.verify()) == ("AUDIT_EDITED", seq)


def test_verify_when_any_byte_of_an_entry_changes_then_names_it(
    filled: AuditLog, tamper: Tamper, database: Path
) -> None:
    body = _body(database, 6)
    for index in range(0, len(body), 7):
        edited = bytearray(body)
        edited[index] ^= 1
        tamper("UPDATE audit_entry SET body = ? WHERE seq = 6", bytes(edited))
        assert _first(filled.verify()) == ("AUDIT_EDITED", 6)


def test_verify_when_editor_also_made_the_hash_then_names_the_entry(
    filled: AuditLog, tamper: Tamper, database: Path
) -> None:
    edited = _body(database, 5).replace(b"false", b"true")
    tamper("UPDATE audit_entry SET body = ?, hash = ? WHERE seq = 5", edited, entry_hash(edited))
    assert _first(filled.verify()) == ("AUDIT_UNSIGNED", 5)


@pytest.mark.parametrize("seq", [1, 5, 9])
def test_verify_when_entry_was_deleted_then_names_the_gap(filled: AuditLog, tamper: Tamper, seq: int) -> None:
    tamper("DELETE FROM audit_entry WHERE seq = ?", seq)
    assert _first(filled.verify()) == ("AUDIT_MISSING", seq)


def test_verify_when_gap_was_closed_then_names_the_place(filled: AuditLog, tamper: Tamper) -> None:
    tamper("DELETE FROM audit_entry WHERE seq = 5")
    tamper("UPDATE audit_entry SET seq = seq - 1 WHERE seq > 5")
    assert _first(filled.verify()) == ("AUDIT_BROKEN_LINK", 5)


def test_verify_when_entries_were_swapped_then_names_the_first(filled: AuditLog, tamper: Tamper) -> None:
    tamper("UPDATE audit_entry SET seq = 100 WHERE seq = 3")
    tamper("UPDATE audit_entry SET seq = 3 WHERE seq = 4")
    tamper("UPDATE audit_entry SET seq = 4 WHERE seq = 100")
    assert _first(filled.verify()) == ("AUDIT_BROKEN_LINK", 3)


def test_verify_when_tail_was_cut_then_says_truncated(filled: AuditLog, tamper: Tamper) -> None:
    tamper("DELETE FROM audit_entry WHERE seq > 7")
    assert _first(filled.verify()) == ("AUDIT_TRUNCATED", 8)


def test_verify_when_an_old_copy_was_put_back_then_the_kept_head_shows_it(
    database: Path, key: Path, tmp_path: Path
) -> None:
    with AuditLog.open(database, signing_key_path=key) as log:
        log.append("grant", "a", {})
    shutil.copy(database, tmp_path / "old.db")
    with AuditLog.open(database, signing_key_path=key) as log:
        head = log.append("grant", "b", {}) and log.head
    rolled_back = AuditReader.open(tmp_path / "old.db")
    assert rolled_back.verify(head_key := Signer.open(key).public_key).ok  # by itself nothing is wrong with it
    assert _first(rolled_back.verify(head_key, [head])) == ("AUDIT_TRUNCATED", 2)
    shutil.copy(tmp_path / "old.db", database)
    with pytest.raises(AuditError, match="but entry 2 was signed"):
        AuditLog.open(database, signing_key_path=key)


def test_verify_when_history_was_written_twice_then_the_kept_head_shows_it(
    database: Path, key: Path, tmp_path: Path
) -> None:
    with AuditLog.open(database, signing_key_path=key, head_path=tmp_path / "one") as log:
        log.append("grant", "a", {})
        shutil.copy(database, tmp_path / "fork.db")
        shutil.copy(f"{database}-wal", tmp_path / "fork.db-wal")
        log.append("grant", "b", {})
        known = log.head
    with AuditLog.open(tmp_path / "fork.db", signing_key_path=key, head_path=tmp_path / "two") as fork:
        fork.append("grant", "c", {})
        assert _first(fork.verify([known])) == ("AUDIT_OTHER_HISTORY", 2)


def test_verify_when_head_does_not_cover_the_tail_then_says_unsigned(log: AuditLog, tamper: Tamper) -> None:
    log.append("grant", "a", {})
    old = log.head
    log.append("grant", "b", {})
    tamper("UPDATE audit_log SET head = ?, signature = ?", old.body(), old.signature)
    assert _first(log.verify()) == ("AUDIT_UNSIGNED", 2)


def test_verify_when_head_signature_is_bad_then_says_so(filled: AuditLog, tamper: Tamper) -> None:
    tamper("UPDATE audit_log SET signature = zeroblob(64)")
    assert _first(filled.verify()) == ("AUDIT_HEAD_SIGNATURE", None)


def test_verify_when_whole_log_is_by_another_key_then_says_wrong_key(filled: AuditLog, tmp_path: Path) -> None:
    forger = Signer.open(tmp_path / "forger.key")
    assert _first(filled.reader.verify(forger.public_key)) == ("AUDIT_WRONG_KEY", None)


def test_verify_when_known_head_is_forged_or_of_another_log_then_says_so(filled: AuditLog, tmp_path: Path) -> None:
    with AuditLog.open(tmp_path / "other.db", signing_key_path=tmp_path / "other.key") as other:
        codes = [f.code for f in filled.verify([other.head]).findings]
    assert "AUDIT_HEAD_SIGNATURE" in codes
    key = tmp_path / "audit.key"
    with AuditLog.open(tmp_path / "third.db", signing_key_path=key, head_path=tmp_path / "third.head") as third:
        assert "AUDIT_OTHER_HISTORY" in [f.code for f in filled.verify([third.head]).findings]


def test_verify_when_wal_is_cut_at_any_byte_then_what_is_left_is_a_whole_prefix(
    database: Path, key: Path, tmp_path: Path
) -> None:
    """Power loss may keep any prefix of the WAL: never half an entry, never a chain that breaks."""
    with AuditLog.open(database, signing_key_path=key) as log:
        for number in range(4):
            log.append("grant", str(number), {})
        wal = Path(f"{database}-wal").read_bytes()
        main = database.read_bytes()
        public_key = log.public_key
    copy = tmp_path / "copy.db"
    lengths = set()
    for size in range(len(wal) // 3, len(wal) + 1, 509):
        copy.write_bytes(main)
        Path(f"{copy}-wal").write_bytes(wal[:size])
        Path(f"{copy}-shm").unlink(missing_ok=True)
        report = AuditReader.open(copy).verify(public_key)
        assert report.ok
        lengths.add(report.entries)
    assert 4 in lengths or len(lengths) > 1


def test_export_when_verified_then_is_as_whole_as_the_log(filled: AuditLog, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with path.open("wb") as file:
        assert filled.reader.export(file) == 10
    exported = AuditReader.open(path)
    assert exported.verify(filled.public_key, [filled.head]).ok
    assert [e.hash for e in exported.entries()] == [e.hash for e in filled.reader.entries()]


@pytest.fixture
def exported(filled: AuditLog, tmp_path: Path) -> list[bytes]:
    with (tmp_path / "audit.jsonl").open("wb") as file:
        filled.reader.export(file)
    return (tmp_path / "audit.jsonl").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "code", "seq"),
    [
        (lambda lines: lines[:5] + lines[6:], "AUDIT_BROKEN_LINK", 5),
        (lambda lines: lines[:8] + lines[-1:], "AUDIT_TRUNCATED", 8),
        (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "AUDIT_BROKEN_LINK", 3),
        (lambda lines: [*lines[:3], lines[3].replace(b"session-3", b"session-X"), *lines[4:]], "AUDIT_EDITED", 3),
    ],
)
def test_export_when_lines_were_changed_then_names_the_first(
    exported: list[bytes],
    filled: AuditLog,
    tmp_path: Path,
    change: Callable[[list[bytes]], list[bytes]],
    code: str,
    seq: int,
) -> None:
    path = tmp_path / "changed.jsonl"
    path.write_bytes(b"".join(change(exported)))
    assert _first(AuditReader.open(path).verify(filled.public_key)) == (code, seq)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [],
        lambda lines: lines[:1],
        lambda lines: lines[:-1],
        lambda lines: [b"{}\n", *lines[1:]],
        lambda lines: [lines[0].replace(b'"log":"', b'"log":"00'), *lines[1:]],
        lambda lines: [*lines[:2], b"junk\n", *lines[3:]],
        lambda lines: [*lines[:2], b'{"entry":1,"hash":"","signature":""}\n', *lines[3:]],
        lambda lines: [*lines[:2], b"x" * 200_000 + b"\n", *lines[3:]],
    ],
)
def test_export_when_it_is_no_export_then_says_unreadable(
    exported: list[bytes], filled: AuditLog, tmp_path: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    path = tmp_path / "changed.jsonl"
    path.write_bytes(b"".join(change(exported)))
    with pytest.raises(AuditError) as caught:
        AuditReader.open(path).verify(filled.public_key)
    assert caught.value.reason == "AUDIT_UNREADABLE"
