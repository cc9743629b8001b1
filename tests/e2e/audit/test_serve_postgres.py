"""`pagegate serve --audit-url`: real servers, one log in a real PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from pagegate.demo.run import CLIENT_WORKLOAD, POLICY, SERVER_WORKLOAD
from pagegate.platforms.simulated import SimulatedRoot, measurement_of

PAGEGATE = [sys.executable, "-m", "pagegate"]
Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def url(postgres_url: str, tmp_path: Path) -> str:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA served")
    return f"{postgres_url}&options=-csearch_path%3Dserved"


@pytest.fixture
def flags(tmp_path: Path, simulated_root: SimulatedRoot) -> list[str]:
    measured = {
        "server": measurement_of(SERVER_WORKLOAD.encode()).hex(),
        "client": measurement_of(CLIENT_WORKLOAD.encode()).hex(),
    }
    (tmp_path / "policy.yaml").write_text(POLICY.format(region="book", **measured))
    return [
        *("--platform=simulated", "--allow-simulated", "--offline"),
        *(f"--simulated-root={simulated_root._directory}", f"--policy={tmp_path / 'policy.yaml'}"),
    ]


@pytest.fixture
def serving(tmp_path: Path, flags: list[str], url: str) -> Iterator[Callable[[str], str]]:
    """serving(name): the address of a server of that name that logs to PostgreSQL; stopped at the end."""
    with ExitStack() as stack:

        def start(name: str) -> str:
            own = [f"--state-dir={tmp_path / name}", f"--audit-key={tmp_path / 'audit.key'}", "--listen=127.0.0.1:0"]
            log = tmp_path / f"{name}.log"
            process = subprocess.Popen(
                [*PAGEGATE, "serve", "--region=book=1MiB", f"--simulated-workload={SERVER_WORKLOAD}", *own, *flags],
                stdout=subprocess.PIPE,
                stderr=stack.enter_context(log.open("w")),
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PAGEGATE_AUDIT_URL": url},
            )

            def end() -> None:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=30)

            stack.callback(end)
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on "), log.read_text()
            return line.strip().removeprefix("listening on ")

        yield start


def pagegate(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PAGEGATE, *arguments], input=stdin, capture_output=True, timeout=60, check=False)


def test_serve_when_two_servers_log_to_one_database_then_one_chain_has_both_and_verifies(
    serving, flags: list[str], url: str, tmp_path: Path
) -> None:
    mine = [f"--simulated-workload={CLIENT_WORKLOAD}", f"--state-dir={tmp_path / 'client'}", *flags]
    for name in ("one", "two"):
        done = pagegate("send", serving(name), "book", "-", *mine, stdin=b"x")
        assert done.returncode == 0, done.stderr
    verified = pagegate("audit", "verify", url, "--key", str(tmp_path / "audit.key"), "--json")
    assert verified.returncode == 0, verified.stdout
    shown = json.loads(pagegate("audit", "show", url, "--json").stdout)
    kinds = [entry["kind"] for entry in shown["entries"]]
    assert [kind for kind in kinds if kind in ("grant", "commit")] == ["grant", "commit"] * 2
    assert not (tmp_path / "one" / "audit.sqlite").exists()


def test_serve_when_the_database_is_not_there_then_ends_and_hides_the_password(flags: list[str], tmp_path: Path):
    done = pagegate(
        *("serve", "--region=book=1MiB", f"--state-dir={tmp_path}", *flags),
        "--audit-url=postgresql://u:s3cret@/audit?host=/nonexistent",
    )
    assert done.returncode == 1
    assert b"AUDIT_STORE" in done.stderr
    assert b"s3cret" not in done.stderr
