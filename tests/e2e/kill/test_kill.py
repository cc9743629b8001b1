"""kill -9 of server, bridge and client at random points of transfers.

Real processes over a real socket. Whatever dies, and whenever: a commit that was acknowledged is there afterwards, a
reader sees whole snapshots only, and the audit log verifies and names every acknowledged commit.
"""

from __future__ import annotations

import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from pagegate.audit import AuditReader
from pagegate.audit.signing import Signer
from pagegate.platforms.simulated import SimulatedRoot
from support.snapshot import number_of

_KILLS = int(os.environ.get("PAGEGATE_KILLS", "50"))
_PAGES = 2048
_HERE = Path(__file__).parent
_PATIENCE_S = 60.0
_TESTS = _HERE.parents[1]


def _follow(stream: IO[str], lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line.strip())
    lines.put("")


@dataclass
class Process:
    """A child whose lines can be waited for."""

    process: subprocess.Popen[str]
    lines: queue.Queue[str] = field(default_factory=queue.Queue)
    """What it said; the empty line is its end."""

    def __post_init__(self) -> None:
        assert self.process.stdout is not None
        self._follower = threading.Thread(target=_follow, args=(self.process.stdout, self.lines))
        self._follower.start()

    def wait_for(self, start: str) -> str:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            line = self.lines.get(timeout=max(0.01, deadline - time.monotonic()))
            assert line, f"the process ended before it said {start!r}"
            if line.startswith(start):
                return line

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def end(self, number: int) -> None:
        assert self.process.stdout is not None
        self.process.send_signal(number)
        self.process.wait(timeout=30)
        self._follower.join()
        self.process.stdout.close()


class Stage:
    """A server and a sender that can each be killed and started again."""

    def __init__(self, site, root: SimulatedRoot) -> None:
        self._site, self._root = site, root
        self.home = site.directory / "book"
        self.state = site.directory / "state"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.acknowledged: dict[int, int] = {}
        """Snapshot to generation."""
        self.server = self.start_server()
        self.sender = self.start_sender()

    def start_server(self) -> Process:
        flags = [
            flag
            for flag in self._site.server_flags(f"book={_PAGES * 4096}@0x100000000:{self.home}")
            if not flag.startswith("--listen=")
        ]
        log = (self._site.directory / "server.log").open("a")
        command = [sys.executable, "-m", "pagegate", "serve", f"--listen=127.0.0.1:{self.port}", *flags]
        with log:
            process = Process(
                subprocess.Popen(
                    [*command, "--max-batch-pages=32"],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )
            )
        process.wait_for("listening on ")
        return process

    def start_sender(self) -> Process:
        """Goes on with the snapshot after the last one that can have become visible."""
        first = max(self.visible(), *self.acknowledged, 0) + 1
        command = [sys.executable, str(_HERE / "sender.py"), f"127.0.0.1:{self.port}", str(self.state)]
        return Process(
            subprocess.Popen(
                [*command, str(self._root._directory), str(self._site.policy), str(first), str(_PAGES)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(_TESTS)},
            )
        )

    def visible(self) -> int:
        """The snapshot that a reader sees now; a half one fails the test."""
        return number_of((self.home / "current").read_bytes()) if (self.home / "current").exists() else 0

    def note(self, line: str) -> None:
        """Takes one line of the sender."""
        words = line.split()
        if words[:1] == ["acknowledged"]:
            self.acknowledged[int(words[1])] = int(words[2])

    def drain(self) -> None:
        """Takes what the sender has said so far."""
        while True:
            try:
                self.note(self.sender.lines.get_nowait())
            except queue.Empty:
                return

    def bridge(self) -> int:
        """The process that holds the server's keys; waits for one that is being replaced."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            for child in _children(self.server.process.pid):
                if child.name == "pagegate-bridge":
                    return child.pid
            time.sleep(0.02)
        raise AssertionError("no bridge process came up")

    def kill_server(self) -> None:
        """And with it the bridge, which must not outlive it."""
        bridge = self.bridge()
        self.server.kill()
        deadline = time.monotonic() + _PATIENCE_S
        while Path(f"/proc/{bridge}").exists():
            assert time.monotonic() < deadline, "the bridge outlived its server"
            time.sleep(0.02)

    def kill(self, victim: str) -> None:
        """SIGKILL, no warning."""
        if victim == "server":
            self.kill_server()
        elif victim == "bridge":
            os.kill(self.bridge(), signal.SIGKILL)
        else:
            self.sender.kill()

    def wait_sending(self) -> None:
        """Until the sender begins another snapshot."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            line = self.sender.lines.get(timeout=max(0.01, deadline - time.monotonic()))
            assert line, "the sender ended"
            self.note(line)
            if line.startswith("sending"):
                return

    def check_audit(self) -> None:
        """The chain verifies, and every acknowledged generation is in it as a commit."""
        log = AuditReader.open(self.state / "audit.sqlite")
        report = log.verify(Signer.open(self.state / "audit.key").public_key)
        assert report.ok, report.findings
        entries = list(log.entries())
        commits = {entry.details["generation"] for entry in entries if entry.kind == "commit"}
        assert set(self.acknowledged.values()) <= commits
        # What was visible when a server came up is on record too, acknowledged or not.
        opened = [entry.details["generation"] for entry in entries if entry.kind == "start"]
        assert opened == sorted(opened)

    def check(self) -> None:
        """After a death: nothing acknowledged is lost, nothing half is visible."""
        visible = self.visible()
        assert visible >= max(self.acknowledged, default=0)

    def close(self) -> None:
        self.sender.kill()
        self.server.end(signal.SIGTERM)


@dataclass(frozen=True)
class _Child:
    pid: int
    name: str


def _children(parent: int) -> list[_Child]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        name, rest = text.partition("(")[2].rpartition(")")[0], text.rpartition(")")[2].split()
        if int(rest[1]) == parent and rest[0] != "Z":
            found.append(_Child(int(status.parent.name), name))
    return found


@contextmanager
def reading(stage: Stage) -> Iterator[list[str]]:
    """A reader of the committed generation all the while; yields what it found wrong."""
    stop, wrong = threading.Event(), []

    def read() -> None:
        last = 0
        while not stop.wait(0.1):
            try:
                seen = stage.visible()
                if seen < last:
                    wrong.append(f"snapshot {seen} after {last}")
                last = seen
            except FileNotFoundError:
                continue  # the generation was switched between looking the link up and opening the file
            except AssertionError as error:
                wrong.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield wrong
    finally:
        stop.set()
        reader.join()


@pytest.mark.timeout(12 * _KILLS)
def test_transfer_when_a_process_is_killed_at_random_points_then_nothing_acknowledged_is_lost(site, simulated_root):
    chance = random.Random(20261123)
    victims = [("server", "bridge", "client")[number % 3] for number in range(_KILLS)]
    chance.shuffle(victims)
    stage = Stage(site, simulated_root)
    struck = 0
    try:
        with reading(stage) as wrong:
            for victim in victims:
                stage.wait_sending()
                time.sleep(chance.uniform(0.0, 0.25))
                stage.kill(victim)
                stage.drain()
                stage.check()
                if victim == "server":
                    stage.check_audit()
                    stage.server = stage.start_server()
                elif victim == "client":
                    stage.sender = stage.start_sender()
                struck += 1
            stage.wait_sending()
            stage.wait_sending()  # and it still works
    finally:
        stage.close()
    assert wrong == []
    assert struck == _KILLS
    stage.check()
    stage.check_audit()
    assert len(stage.acknowledged) > 2
