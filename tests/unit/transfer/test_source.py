"""What can be sent: buffers, files, streams and other processes' memory."""

import ctypes
import io
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_file_is_read_by_pages(tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 4096 + b"y" * 100)
    with file_source(path) as source:
        assert source.pages == 2
        assert bytes(source.read(0, 2)) == b"x" * 4096 + b"y" * 100 + bytes(3996)


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
