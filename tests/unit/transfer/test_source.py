"""What can be sent: buffers, files, streams and other processes' memory."""

import ctypes
import io
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

import enclave_bridge as eb
from pagegate.errors import TransferError
from pagegate.transfer.source import BufferSource, ProcessSource, file_source, process_mappings, stream_source


def test_buffer_when_not_whole_pages_is_padded_with_zeros():
    source = BufferSource(b"a" * 5000)
    assert source.pages == 2
    assert bytes(source.read(1, 1)) == b"a" * 904 + bytes(3192)


def test_buffer_when_whole_is_not_copied():
    data = bytearray(8192)
    view = BufferSource(data).read(0, 2)
    data[0] = 7
    assert memoryview(view)[0] == 7


def test_buffer_when_empty_is_refused():
    with pytest.raises(TransferError, match="SOURCE_EMPTY"):
        BufferSource(b"")


@pytest.mark.parametrize(("size", "count"), [(1, 1), (4096, 1), (4097, 2), (12288, 3)])
def test_file_when_opened_for_a_bridge_has_its_pages(tmp_path: Path, size: int, count: int):
    path = tmp_path / "f"
    path.write_bytes(b"x" * size)
    bridge = eb.Bridge(max_sessions=1, max_handshakes=1)
    with file_source(path) as source, source.open(bridge) as opened:
        assert (source.pages, opened.length) == (count, size)


def test_file_when_cut_before_a_bridge_has_it_is_refused(tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 4096)
    bridge = eb.Bridge(max_sessions=1, max_handshakes=1)
    with file_source(path) as source:
        os.truncate(path, 4095)
        with pytest.raises(TransferError, match="SOURCE_UNREADABLE"):
            source.open(bridge)


@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
def test_file_when_not_regular_is_refused_at_once(tmp_path: Path, kind: str):
    path = {"directory": tmp_path, "fifo": tmp_path / "fifo", "device": Path("/dev/zero")}[kind]
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(TransferError, match="not a regular file"), file_source(path):
        pass


def test_file_when_missing_or_empty_is_refused(tmp_path: Path):
    with pytest.raises(TransferError, match="SOURCE_UNREADABLE"), file_source(tmp_path / "none"):
        pass
    (tmp_path / "empty").touch()
    with pytest.raises(TransferError, match="SOURCE_EMPTY"), file_source(tmp_path / "empty"):
        pass


def test_stream_when_over_the_limit_is_refused():
    assert stream_source(io.BytesIO(b"z" * 4096), 4096).pages == 1
    with pytest.raises(TransferError, match="SOURCE_TOO_LARGE"):
        stream_source(io.BytesIO(b"z" * 4097), 4096)


def test_process_memory_is_what_the_process_has():
    heap = mmap.mmap(-1, 3 * 4096)
    heap[4096:4100] = b"LIVE"
    address = ctypes.addressof(ctypes.c_char.from_buffer(heap))
    source = ProcessSource(os.getpid(), address, address + 3 * 4096)
    try:
        assert source.pages == 3
        assert bytes(source.read(1, 1))[:4] == b"LIVE"
    finally:
        source.close()


@pytest.mark.parametrize("bounds", [(4096, 4096), (8192, 4096), (1, 4097)])
def test_process_range_when_not_whole_pages_is_refused(bounds: tuple[int, int]):
    with pytest.raises(TransferError, match="UNALIGNED"):
        ProcessSource(os.getpid(), *bounds)


def test_process_range_when_not_mapped_is_refused():
    with pytest.raises(TransferError, match="nothing readable mapped"):
        ProcessSource(os.getpid(), 4096, 8192)


def test_process_when_it_does_not_exist_is_refused():
    with pytest.raises(TransferError, match="SOURCE_UNREADABLE"):
        process_mappings(2**22 + 1)


def test_process_when_it_ends_meanwhile_is_an_error():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        mapping = next(m for m in process_mappings(child.pid) if m.name == "[stack]")
        source = ProcessSource(child.pid, mapping.end - 4096, mapping.end)
    finally:
        child.kill()
        child.communicate()
    with pytest.raises(TransferError, match="SOURCE_UNREADABLE"):
        source.read(0, 1)
    source.close()
