"""Recorded kernel text becomes metrics, spans and log lines."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pagegate.cli import run
from pagegate.host.events import KernelEvent
from pagegate.host.sources import KernelLines
from pagegate.operate.kernel import HostWatch
from pagegate.operate.source import EventMemory
from pagegate.telemetry import Telemetry


class Log:
    """A kernel log that a test writes: a pipe, which like /dev/kmsg is followed by polling."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "kmsg"
        os.mkfifo(self.path)
        self._writer = os.open(self.path, os.O_RDWR)

    def lines(self, tracefs: Path) -> KernelLines:
        return KernelLines(log_path=self.path, tracefs=tracefs, from_start=True)

    def write(self, text: str) -> None:
        os.write(self._writer, text.encode())

    def close(self) -> None:
        os.close(self._writer)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def told(telemetry: Telemetry, tmp_path: Path, kmsg: str, caplog: pytest.LogCaptureFixture) -> list[KernelEvent]:
    """The events of the recorded text, after a watch has seen them."""
    events: list[KernelEvent] = []
    log = Log(tmp_path)
    with (
        caplog.at_level(logging.INFO, "pagegate.host"),
        HostWatch(telemetry, events.append, lines=log.lines(tmp_path / "none")),
    ):
        log.write(kmsg)
        wait_until(lambda: len(events) == 3)
    log.close()
    return events


def test_watch_when_the_kernel_tells_of_faults_then_each_is_counted_by_kind(
    told: list[KernelEvent], scrape: Callable[[], list[str]]
) -> None:
    found = [line for line in scrape() if line.startswith("pagegate_host_")]
    assert sorted(line for line in found if "_events_total" in line) == [
        'pagegate_host_events_total{pagegate_host_event="rmp-fault-unexpected",pagegate_host_severity="warning"} 1',
        'pagegate_host_events_total{pagegate_host_event="rmp-update-failed",pagegate_host_severity="critical"} 1',
        'pagegate_host_events_total{pagegate_host_event="snp-enabled",pagegate_host_severity="info"} 1',
    ]
    assert "pagegate_host_watched 1" in found


def test_watch_when_the_kernel_tells_of_faults_then_each_is_a_span(
    told: list[KernelEvent], telemetry: Telemetry
) -> None:
    assert telemetry.recorder is not None
    spans = [span for trace in telemetry.recorder.traces() for span in trace.spans]
    critical = next(s for s in spans if s.attributes["pagegate.host.event"] == "rmp-update-failed")
    assert len(spans) == 3
    assert critical.error
    assert critical.attributes["pagegate.host.uptime"] == 52.0
    assert "RMPUPDATE failed for PFN 12ab00" in str(critical.attributes["pagegate.host.text"])


def test_watch_when_the_kernel_tells_of_faults_then_each_is_a_log_line_of_its_severity(
    told: list[KernelEvent], caplog: pytest.LogCaptureFixture
) -> None:
    records = caplog.get_records("setup")
    levels = {r.args[0]: r.levelname for r in records if isinstance(r.args, tuple) and len(r.args) == 3}
    assert levels == {"snp-enabled": "INFO", "rmp-update-failed": "ERROR", "rmp-fault-unexpected": "WARNING"}


def test_watch_when_nothing_can_be_seen_then_says_so_and_does_not_stop_the_server(
    telemetry: Telemetry, scrape: Callable[[], list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = KernelLines(log_path=tmp_path / "none", tracefs=tmp_path / "none", from_start=True)
    with HostWatch(telemetry, lambda _: None, lines=lines) as watch:
        assert watch.blind
    assert "pagegate_host_watched 0" in scrape()
    assert caplog.text.count("not watched") == 2


def test_watch_when_the_log_cannot_be_followed_then_says_that_it_is_blind(
    telemetry: Telemetry, scrape: Callable[[], list[str]], tmp_path: Path, kmsg: str
) -> None:
    (tmp_path / "kmsg").write_text(kmsg)  # a plain file cannot be polled
    lines = KernelLines(log_path=tmp_path / "kmsg", tracefs=tmp_path / "none", from_start=True)
    with HostWatch(telemetry, lambda _: None, lines=lines):
        wait_until(lambda: "pagegate_host_watched 0" in scrape())


def test_memory_when_told_of_events_then_keeps_what_is_worth_a_look(told: list[KernelEvent]) -> None:
    memory = EventMemory()
    for event in told:
        memory.kernel(event)
    total, kept = memory.refusals()
    assert total == 2
    assert [r.reason for r in kept] == ["HOST_RMP_FAULT_UNEXPECTED", "HOST_RMP_UPDATE_FAILED"]


def test_watch_command_when_given_a_collector_then_sends_events_there(tmp_path: Path, kmsg: str) -> None:
    from pagegate.telemetry.receiver import OtlpReceiver

    recording = tmp_path / "boot.txt"
    recording.write_text(kmsg)
    with OtlpReceiver() as receiver:
        assert run(["watch", "--from", str(recording), "--otlp-endpoint", receiver.endpoint]) == 2
        names = {span.attributes["pagegate.host.event"] for trace in receiver.traces() for span in trace.spans}
    assert names == {"snp-enabled", "rmp-update-failed", "rmp-fault-unexpected"}
