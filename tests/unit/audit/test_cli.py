"""`pagegate audit`, run as the command line runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pagegate.audit import AuditLog
from pagegate.cli import EXIT_REJECTED, EXIT_UNREADABLE, EXIT_USAGE, run


def test_verify_when_whole_then_exits_0(filled: AuditLog, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "verify", str(database)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("whole")
    assert "10 good" in shown


def test_verify_when_edited_then_exits_2_and_names_the_entry(
    filled: AuditLog, database: Path, tamper: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    tamper("UPDATE audit_entry SET body = x'7b7d' WHERE seq = 3")
    assert run(["audit", "verify", "--json", str(database)]) == EXIT_REJECTED
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["findings"][0] == {
        "code": "AUDIT_EDITED",
        "seq": 3,
        "message": report["findings"][0]["message"],
    }


def test_verify_when_only_the_public_key_is_given_then_says_what_it_cannot_show(
    filled: AuditLog, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "verify", "--public-key", filled.public_key.hex(), str(database)]) == 0
    assert "roll-back" in capsys.readouterr().out


def test_verify_when_a_published_head_is_ahead_then_exits_2(
    filled: AuditLog, database: Path, tamper: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "early.head").write_bytes(filled.head.to_json())
    tamper("DELETE FROM audit_entry WHERE seq > 8")
    code = run(["audit", "verify", "--head", str(tmp_path / "early.head"), str(database)])
    assert code == EXIT_REJECTED
    assert "AUDIT_TRUNCATED" in capsys.readouterr().out


def test_verify_when_own_row_is_gone_then_exits_2(
    filled: AuditLog, database: Path, tamper: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    tamper("DELETE FROM audit_log")
    assert run(["audit", "verify", "--json", str(database)]) == EXIT_REJECTED
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "AUDIT_TAMPERED"


def test_verify_when_head_file_is_no_head_then_exits_3(filled: AuditLog, database: Path, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    assert run(["audit", "verify", "--head", str(tmp_path / "junk"), str(database)]) == EXIT_UNREADABLE


@pytest.mark.parametrize(
    "options",
    [["--public-key", "zz"], ["--public-key", "00"], ["--public-key", "00" * 32, "--key", "KEY"], []],
)
def test_verify_when_key_options_are_wrong_then_exits_64(
    filled: AuditLog, database: Path, key: Path, tmp_path: Path, options: list[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = elsewhere / "copy.db"
    copy.write_bytes(database.read_bytes())
    options = [str(key) if option == "KEY" else option for option in options]
    assert run(["audit", "verify", *options, str(copy)]) == EXIT_USAGE


def test_verify_when_log_is_missing_then_exits_3(key: Path, filled: AuditLog, tmp_path: Path) -> None:
    assert run(["audit", "verify", "--key", str(key), str(tmp_path / "none.db")]) == EXIT_UNREADABLE


def test_export_when_written_then_verifies_with_the_key(
    filled: AuditLog, database: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit.jsonl"
    assert run(["audit", "export", str(database), "-o", str(out)]) == 0
    assert "exported 10" in capsys.readouterr().err
    assert run(["audit", "verify", "--key", str(key), str(out)]) == 0


def test_show_when_kind_is_given_then_shows_only_those(
    filled: AuditLog, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled.append("policy", "reload", {"digest": "ab"})
    assert run(["audit", "show", "--json", "--kind", "policy", str(database)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [entry["subject"] for entry in shown["entries"]] == ["reload"]
    assert shown["head"]["head"]


def test_show_when_entry_holds_control_characters_then_escapes_them(
    filled: AuditLog, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled.append("verdict", "\x1b[2J", {"name": "a b"})
    assert run(["audit", "show", "--last", "1", str(database)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert '"a b"' in shown
    assert shown.count("\n") == 4
