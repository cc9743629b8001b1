"""Files that are cut while they are read: an error with a reason, and a server that goes on."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pagegate.client import Client
from pagegate.errors import TransferError
from pagegate.handshake.model import Limits
from pagegate.server import Server
from pagegate.transfer.source import file_source

SIZE = 256 * 4096


def test_send_when_the_file_is_cut_meanwhile_is_refused_and_nothing_is_visible(
    serve: Callable[..., Server], connect: Callable[..., Client], tmp_path: Path
):
    path = tmp_path / "snapshot"
    path.write_bytes(os.urandom(SIZE))
    server = serve(limits=Limits(3600, 4, 4))
    client = connect(server)
    with file_source(path) as source, pytest.raises(TransferError, match="SOURCE_UNREADABLE"):
        client.send("book", source, progress=lambda _done, _total: os.truncate(path, 100))
    assert server.regions.by_name("book").generation == 0
    path.write_bytes(b"whole" * 1000)
    with file_source(path) as source:
        assert client.send("book", source).pages == 2


def test_read_when_the_region_s_file_was_cut_is_refused_and_the_server_goes_on(
    server: Server, client: Client, tmp_path: Path
):
    data = os.urandom(SIZE)
    client.send("disk", data)
    path = (tmp_path / "disk" / "current").resolve()
    os.truncate(path, SIZE - 1)
    with pytest.raises(TransferError, match="SOURCE_UNREADABLE"):
        client.read("disk")
    os.truncate(path, SIZE)
    assert bytes(client.read("disk")[0]) == data[: SIZE - 1] + b"\0"


def test_send_when_the_file_is_another_s_growing_log_sends_what_it_was(server: Server, client: Client, tmp_path: Path):
    path = tmp_path / "log"
    path.write_bytes(b"l" * 5000)
    with file_source(path) as source:
        with path.open("ab") as log:
            log.write(b"more" * 5000)
        assert client.send("book", source).pages == 2
    assert bytes(client.read("book")[0][:12288]) == b"l" * 5000 + bytes(12288 - 5000)
