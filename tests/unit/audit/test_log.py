"""Appending and reading."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pagegate.audit import AuditKind, AuditLog, AuditReader
from pagegate.audit.entry import MAX_ITEMS, MAX_TEXT
from pagegate.audit.signing import entry_signed_by, head_signed_by
from pagegate.audit.sqlite import SqliteStore
from pagegate.errors import AuditError


def test_append_when_first_then_is_entry_one_signed_and_readable(log: AuditLog, database: Path) -> None:
    before = datetime.now(UTC)
    entry = log.append(AuditKind.GRANT, "region book", {"mode": "write", "pages": 512, "reasons": ("A", "B")})
    assert entry.seq == 1
    assert before - timedelta(seconds=1) <= entry.time <= datetime.now(UTC)
    assert entry_signed_by(log.public_key, entry.hash, entry.signature)
    (read,) = AuditReader.open(database).entries()
    assert read.details == {"mode": "write", "pages": 512, "reasons": ["A", "B"]}
    assert (read.seq, read.kind, read.subject, read.hash) == (1, "grant", "region book", entry.hash)


def test_append_when_many_then_each_names_the_hash_before_it(filled: AuditLog) -> None:
    entries = list(filled.reader.entries())
    assert [entry.seq for entry in entries] == list(range(1, 11))
    assert [entry.prev for entry in entries[1:]] == [entry.hash for entry in entries[:-1]]


def test_entries_when_after_is_given_then_starts_behind_it(filled: AuditLog) -> None:
    assert [entry.seq for entry in filled.reader.entries(after=7)] == [8, 9, 10]


def test_append_when_reading_at_the_same_time_then_neither_waits(filled: AuditLog) -> None:
    reading = filled.reader.entries()
    next(reading)
    filled.append("grant", "while reading", {})
    assert len(list(reading)) == 9


def test_head_when_entries_were_added_then_is_signed_and_at_the_last(filled: AuditLog) -> None:
    assert filled.head.seq == 10
    assert head_signed_by(filled.public_key, filled.head)


def test_open_when_log_exists_then_continues_it(database: Path, key: Path) -> None:
    with AuditLog.open(database, signing_key_path=key) as first:
        first.append("policy", "a", {})
    with AuditLog.open(str(database), signing_key_path=key) as second:
        assert second.append("policy", "b", {}).seq == 2
        assert second.verify().ok


def test_append_when_threads_are_many_then_all_are_there_once_and_fsyncs_are_shared(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = 0
    real = SqliteStore.append

    def counted(self: SqliteStore, extend: object) -> object:
        nonlocal commits
        commits += 1
        return real(self, extend)  # type: ignore[arg-type]

    monkeypatch.setattr(SqliteStore, "append", counted)
    seqs: list[int] = []
    start = threading.Barrier(16)

    def work(name: int) -> None:
        start.wait()
        seqs.extend(log.append("commit", f"thread-{name}", {"i": i}).seq for i in range(10))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seqs) == list(range(1, 161))
    assert log.verify().ok
    assert commits < 160


def test_append_when_two_logs_share_a_file_then_the_chain_holds(log: AuditLog, database: Path, key: Path) -> None:
    with AuditLog.open(database, signing_key_path=key) as other:
        for number in range(10):
            (log if number % 2 else other).append("commit", str(number), {})
    assert log.verify().ok
    assert log.verify().entries == 10


def test_store_when_opened_then_fsyncs_every_commit(database: Path) -> None:
    store = SqliteStore(database)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_files_when_made_then_are_for_their_owner_only(filled: AuditLog, tmp_path: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"audit.key", "audit.key.head", "audit.db"} <= set(modes)


def test_database_when_changed_by_plain_sql_then_refuses(filled: AuditLog, database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute("DELETE FROM audit_entry")
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute("UPDATE audit_entry SET body = x''")


@pytest.mark.parametrize(
    ("kind", "subject", "details"),
    [
        ("Verdict", "s", {}),
        ("", "s", {}),
        ("verdict", "s" * (MAX_TEXT + 1), {}),
        ("verdict", "\udc80", {}),
        ("verdict", "s", {"Name": 1}),
        ("verdict", "s", {"page": b"\x00" * 16}),
        ("verdict", "s", {"page": "00" * 4096}),
        ("verdict", "s", {"n": 2**53}),
        ("verdict", "s", {"f": 1.5}),
        ("verdict", "s", {"list": ["x"] * (MAX_ITEMS + 1)}),
        ("verdict", "s", {"list": [1]}),
        ("verdict", "s", {f"d{i}": 1 for i in range(MAX_ITEMS + 1)}),
        ("verdict", "s", {f"d{i}": "x" * MAX_TEXT for i in range(9)}),
        ("verdict", 7, {}),
    ],
)
def test_append_when_entry_is_out_of_bounds_then_refuses_and_adds_nothing(
    log: AuditLog, kind: str, subject: str, details: dict[str, object]
) -> None:
    with pytest.raises(AuditError) as caught:
        log.append(kind, subject, details)  # type: ignore[arg-type]
    assert caught.value.reason == "AUDIT_ENTRY_INVALID"
    assert log.head.seq == 0
    assert list(log.reader.entries()) == []


def test_append_when_largest_entry_is_allowed_then_it_verifies(log: AuditLog) -> None:
    log.append("verdict", "\x00" * 100, {f"d{i}": "x" * MAX_TEXT for i in range(7)})
    assert log.verify().ok


def test_append_when_store_fails_then_raises_and_later_appends_work(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            SqliteStore, "_state", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("disk I/O error"))
        )
        with pytest.raises(AuditError, match="disk I/O error") as caught:
            log.append("grant", "s", {})
    assert caught.value.reason == "AUDIT_STORE"
    assert log.append("grant", "s", {}).seq == 1


def test_append_when_head_file_cannot_be_written_then_fails_closed(tmp_path: Path) -> None:
    folder = tmp_path / "heads"
    folder.mkdir()
    opened = AuditLog.open(tmp_path / "a.db", signing_key_path=tmp_path / "a.key", head_path=folder / "head")
    (folder / "head").unlink()
    (folder / "head").mkdir()
    with opened, pytest.raises(AuditError) as caught:
        opened.append("grant", "s", {})
    assert caught.value.reason == "AUDIT_HEAD_FILE"


def test_append_when_forked_then_refuses_in_the_child(log: AuditLog) -> None:
    child = os.fork()
    if child == 0:
        try:
            log.append("grant", "s", {})
        except AuditError as error:
            os._exit(7 if error.reason == "AUDIT_FORKED" else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_append_when_tail_was_cut_while_open_then_refuses_to_sign_over_it(
    filled: AuditLog, tamper: Callable[..., None], database: Path
) -> None:
    old = filled.head
    filled.append("grant", "s", {})
    tamper("DELETE FROM audit_entry WHERE seq = 11")
    tamper("UPDATE audit_log SET head = ?, signature = ?", old.body(), old.signature)
    with pytest.raises(AuditError) as caught:
        filled.append("grant", "s", {})
    assert caught.value.reason == "AUDIT_TAMPERED"


def test_append_when_last_entry_was_removed_then_refuses(filled: AuditLog, tamper: Callable[..., None]) -> None:
    tamper("DELETE FROM audit_entry WHERE seq = 10")
    with pytest.raises(AuditError) as caught:
        filled.append("grant", "s", {})
    assert caught.value.reason == "AUDIT_TAMPERED"


def test_append_when_head_row_was_forged_then_refuses(filled: AuditLog, tamper: Callable[..., None]) -> None:
    tamper("UPDATE audit_log SET signature = zeroblob(64)")
    with pytest.raises(AuditError) as caught:
        filled.append("grant", "s", {})
    assert caught.value.reason == "AUDIT_TAMPERED"


@pytest.mark.parametrize("statement", ["DELETE FROM audit_log", "UPDATE audit_log SET head = 'text'"])
def test_state_when_own_row_is_bad_then_says_tampered(
    filled: AuditLog, tamper: Callable[..., None], statement: str
) -> None:
    tamper(statement)
    with pytest.raises(AuditError) as caught:
        _ = filled.reader.state
    assert caught.value.reason == "AUDIT_TAMPERED"


def test_open_when_log_was_deleted_then_refuses_because_of_the_head_kept(database: Path, key: Path) -> None:
    with AuditLog.open(database, signing_key_path=key) as opened:
        opened.append("grant", "s", {})
    database.unlink()
    with pytest.raises(AuditError, match="of another log"):
        AuditLog.open(database, signing_key_path=key)


def test_open_when_key_is_another_then_refuses(database: Path, key: Path, tmp_path: Path) -> None:
    AuditLog.open(database, signing_key_path=key).close()
    with pytest.raises(AuditError) as caught:
        AuditLog.open(database, signing_key_path=tmp_path / "other.key")
    assert caught.value.reason == "AUDIT_WRONG_KEY"


def test_open_when_target_is_a_folder_then_says_what_to_check(tmp_path: Path, key: Path) -> None:
    with pytest.raises(AuditError) as caught:
        AuditLog.open(tmp_path, signing_key_path=key)
    assert caught.value.reason == "AUDIT_STORE"


def test_open_when_url_scheme_is_unknown_then_refuses(key: Path) -> None:
    with pytest.raises(AuditError) as caught:
        AuditLog.open("mysql://db/audit", signing_key_path=key)
    assert caught.value.reason == "AUDIT_URL"


def test_reader_when_file_is_missing_then_says_so(tmp_path: Path) -> None:
    with pytest.raises(AuditError) as caught:
        AuditReader.open(tmp_path / "none.db")
    assert caught.value.reason == "AUDIT_UNREADABLE"


def test_reader_when_entry_was_garbled_then_names_it(filled: AuditLog, tamper: Callable[..., None]) -> None:
    tamper("UPDATE audit_entry SET body = 'not json' WHERE seq = 4")
    with pytest.raises(AuditError, match="entry 4"):
        list(filled.reader.entries())


def test_open_when_file_is_no_database_then_refuses_and_leaves_it(database: Path, key: Path) -> None:
    database.write_bytes(b"something else " * 100)
    with pytest.raises(AuditError, match="not a database"):
        AuditLog.open(database, signing_key_path=key)
    assert database.read_bytes().startswith(b"something else")


def test_reader_when_medium_is_read_only_then_reads_a_closed_log_as_it_is(database: Path, key: Path) -> None:
    with AuditLog.open(database, signing_key_path=key) as opened:
        opened.append("grant", "s", {})
    folder = database.parent
    mount = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && ! touch {folder}/x 2>/dev/null"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, mount], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("NOT TESTED: this machine allows no read-only mount in a namespace")
    read = f"from pagegate.audit import AuditReader; print(len(list(AuditReader.open({str(database)!r}).entries())))"
    done = subprocess.run(
        [*inside, f'{mount} && "{sys.executable}" -c "{read}"'], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["1"], done.stderr
