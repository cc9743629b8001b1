"""Reading the kernel's lines, from files and pipes in the kernel's place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pagegate.errors import PlatformError
from pagegate.host.events import EventKind, events
from pagegate.host.sources import TRACE_EVENTS, KernelLines, recorded

_FAULT = (
    "  CPU 0/KVM-21331   [017] d..2.  5123.456789: kvm_rmp_fault: vcpu 0 gpa 000000007f000000 pfn 0x12ab00"
    " error_code 0x480000006 rmp_level 2 psmash_ret 0\n"
)
_LOG = "4,1,5,-;kvm_amd: SEV: Unexpected RMP fault, non-private slot for GPA 0x1000\n"


@pytest.fixture
def tracefs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose new instances have events and a pipe, as the kernel's have."""
    folder = tmp_path / "tracing"
    (folder / "instances").mkdir(parents=True)
    real = Path.mkdir

    def make(self: Path, *arguments: object, **options: object) -> None:
        real(self, *arguments, **options)  # type: ignore[arg-type]
        if self.parent.name == "instances":
            for name, _ in TRACE_EVENTS[:2]:
                real(self / "events" / name, parents=True)
            os.mkfifo(self / "trace_pipe")

    monkeypatch.setattr(Path, "mkdir", make)
    return folder


def test_lines_when_log_and_trace_speak_then_both_are_told(tmp_path: Path, tracefs: Path) -> None:
    log = tmp_path / "kmsg"
    os.mkfifo(log)
    with KernelLines(log_path=log, tracefs=tracefs, from_start=True) as lines:
        (instance,) = (tracefs / "instances").iterdir()
        writers = [os.open(path, os.O_WRONLY) for path in (log, instance / "trace_pipe")]
        os.write(writers[0], _LOG.encode())
        os.write(writers[1], _FAULT[:40].encode())
        seen: list[EventKind] = []
        for line in lines.follow():
            if line is None and len(seen) == 1:
                os.write(writers[1], _FAULT[40:].encode())
            seen += [event.kind for event in events([line or ""])]
            if len(seen) == 2:
                break
        for writer in writers:
            os.close(writer)
        assert (instance / "events/kvm/kvm_rmp_fault/enable").read_text() == "1"
        assert (instance / "events/exceptions/page_fault_user/filter").read_text() == "error_code & 0x80000000"
        assert lines.unseen == ["trace events that this kernel does not have: exceptions/page_fault_kernel"]
    assert seen == [EventKind.RMP_FAULT_UNEXPECTED, EventKind.RMP_FAULT]


def test_lines_when_nothing_can_be_opened_then_are_blind_and_say_why(tmp_path: Path) -> None:
    with KernelLines(log_path=tmp_path / "none", tracefs=tmp_path / "none", from_start=True) as lines:
        assert lines.blind
        assert len(lines.unseen) == 2
        assert all("root" in reason for reason in lines.unseen)


def test_lines_when_only_what_waits_is_asked_then_end(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text(_LOG * 3)
    with KernelLines(log_path=log, tracefs=tmp_path / "none", from_start=True) as lines:
        assert [event.fields["gpa"] for event in events(lines.waiting())] == [0x1000] * 3


def test_lines_when_old_ones_are_not_wanted_then_starts_at_the_end(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text(_LOG)
    with KernelLines(log_path=log, tracefs=tmp_path / "none", from_start=False) as lines:
        assert list(lines.waiting()) == []


def test_lines_when_log_is_overwritten_while_read_then_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "kmsg"
    log.write_text(_LOG)
    with KernelLines(log_path=log, tracefs=tmp_path / "none", from_start=True) as lines:
        real, calls = os.read, iter([BrokenPipeError])

        def read(descriptor: int, length: int) -> bytes:
            for error in calls:
                raise error  # what /dev/kmsg answers once
            return real(descriptor, length)

        monkeypatch.setattr(os, "read", read)
        kinds = [event.kind for event in events(lines.waiting())]
    assert kinds == [EventKind.EVENTS_SUPPRESSED, EventKind.RMP_FAULT_UNEXPECTED]


def test_recorded_when_lines_are_long_then_reads_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("x" * 20_000 + "\n" + _LOG)
    assert len(list(events(recorded(path)))) == 1


def test_recorded_when_missing_then_says_so(tmp_path: Path) -> None:
    with pytest.raises(PlatformError) as caught:
        list(recorded(tmp_path / "none"))
    assert caught.value.reason == "RECORDING_UNREADABLE"
