"""`pagegate serve --audit-url`: real servers, one log in a real PostgreSQL."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def url(postgres_url: str) -> str:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA served")
    return f"{postgres_url}&options=-csearch_path%3Dserved"


def test_serve_when_two_servers_log_to_one_database_then_one_chain_has_both_and_verifies(
    site, serving, pagegate: Run, url: str, tmp_path: Path
) -> None:
    shared = [f"--audit-url={url}", f"--audit-key={tmp_path / 'audit.key'}"]
    for name in ("one", "two"):
        server = serving(*site.server_flags(), *shared, f"--state-dir={tmp_path / name}")
        done = pagegate("send", server.address, "book", "-", *site.client_flags, stdin=b"x")
        assert done.returncode == 0, done.stderr
    verified = pagegate("audit", "verify", url, "--key", str(tmp_path / "audit.key"), "--json")
    assert verified.returncode == 0, verified.stdout
    shown = json.loads(pagegate("audit", "show", url, "--json").stdout)
    kinds = [entry["kind"] for entry in shown["entries"]]
    assert [kind for kind in kinds if kind in ("grant", "commit")] == ["grant", "commit"] * 2
    assert not (tmp_path / "one" / "audit.sqlite").exists()


def test_serve_when_the_database_is_not_there_then_ends_and_hides_the_password(site, pagegate: Run) -> None:
    done = pagegate("serve", *site.server_flags(), "--audit-url=postgresql://u:s3cret@/audit?host=/nonexistent")
    assert done.returncode == 1
    assert b"AUDIT_STORE" in done.stderr
    assert b"s3cret" not in done.stderr
