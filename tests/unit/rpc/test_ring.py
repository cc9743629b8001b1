"""A link over shared memory: patience, the peer's end, and what is not believed."""

import os
import socket
import threading
from pathlib import Path

import pytest

import enclave_bridge as eb
from pagegate.errors import ConfigError, TransferError
from pagegate.rpc.admission import AdmissionLimits, Gate
from pagegate.rpc.ring import MAX_CONTROL, READY, REQUEST, RingLink, decode_metadata, encode_metadata
from pagegate.rpc.ring_client import fetch
from pagegate.rpc.ring_file import RingFile
from pagegate.rpc.ring_server import RingServer
from pagegate.rpc.ring_transfers import RingTransfers
from pagegate.transfer.session import SessionTable
from pagegate.v1 import transfer_pb2 as pb

CAPACITY = eb.channel_capacity(64)
TRANSFERS = RingTransfers(lambda _requests, _context: iter(()), SessionTable(1), Gate(AdmissionLimits()))


@pytest.fixture
def links():
    fd = eb.create_channel(CAPACITY)
    sockets = socket.socketpair(socket.AF_UNIX)
    roles = (eb.Role.CLIENT, eb.Role.SERVER)
    made = [
        RingLink(eb.Channel(fd, CAPACITY, role=role), end, patience_s=0.3)
        for role, end in zip(roles, sockets, strict=True)
    ]
    os.close(fd)
    yield made
    for end in sockets:
        end.close()


@pytest.fixture
def folder(tmp_path_factory):
    """Short enough for a Unix socket."""
    path = Path(f"/tmp/pagegate-test-{os.getpid()}-{os.urandom(4).hex()}")
    path.mkdir()
    yield path
    for left in path.iterdir():
        left.unlink()
    path.rmdir()


def refusal(call) -> str:
    with pytest.raises((TransferError, ConfigError)) as caught:
        call()
    return caught.value.reason


def test_last_word_when_it_comes_between_a_look_and_the_peers_end_is_heard(links, monkeypatch):
    client, server = links
    channel = client._channel

    class LooksTooEarly:
        def next(self, timeout_s: float):
            monkeypatch.setattr(client, "_channel", channel)
            server.put(4, b"refused")
            server.close()

    monkeypatch.setattr(client, "_channel", LooksTooEarly())
    assert client.next().kind == 4
    assert client.take() == b"refused"
    assert refusal(client.next) == "RING_CLOSED"


def test_peer_when_alive_but_silent_is_given_up_after_the_patience(links):
    assert refusal(links[0].next) == "RING_TIMEOUT"


def test_peer_when_it_does_not_read_is_given_up_after_the_patience(links):
    def fill():
        while True:
            links[0].put(REQUEST, bytes(MAX_CONTROL))

    assert refusal(fill) == "RING_TIMEOUT"


def test_peer_when_its_process_is_gone_ends_a_long_wait(links):
    links[1]._connection.close()
    assert refusal(lambda: links[0].next(60)) == "RING_CLOSED"
    assert not links[0].alive


def test_peer_when_it_closes_in_order_is_read_to_the_end_first(links):
    links[1].put(REQUEST, b"last")
    links[1].close()
    assert links[0].next().size == 4
    assert links[0].take() == b"last"
    assert refusal(links[0].next) == "RING_CLOSED"


def test_control_message_when_too_long_is_malformed(links):
    links[0].put(REQUEST, bytes(MAX_CONTROL + 1))
    links[1].next()
    assert refusal(links[1].take) == "MALFORMED_MESSAGE"


def test_metadata_when_carried_is_the_same_without_binary_values():
    pairs = (("traceparent", "00-a-b-01"), ("key-bin", b"\0"))
    assert decode_metadata(encode_metadata(pairs)) == pairs[:1]


@pytest.mark.parametrize("message", [b"", b"{", b"[1]", b'["x"]', b"[[]]", b"\xff", b"[" * 60000])
def test_metadata_when_not_a_list_of_pairs_is_malformed(message):
    assert refusal(lambda: decode_metadata(message)) == "MALFORMED_MESSAGE"


def hand_out(path: Path, greeting: bytes, fds: list[int]) -> threading.Thread:
    """A server that hands over whatever it is told, once."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)

    def serve():
        connection, _ = listener.accept()
        with listener, connection:
            connection.recv(16)
            if greeting:
                socket.send_fds(connection, [greeting], fds)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize("what", ["nothing", "no memory", "unsealed", "another size", "no file"])
def test_fetch_when_what_comes_is_not_sealed_memory_of_the_size_offered_takes_none(folder, what):
    good, other = eb.create_channel(CAPACITY), eb.create_channel(CAPACITY // 2)
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, 4 * CAPACITY)
    eb.format_channel(unsealed, CAPACITY)
    read_end, write_end = os.pipe()
    given = {
        "nothing": (b"", []),
        "no memory": (READY, []),
        "unsealed": (READY, [unsealed]),
        "another size": (READY, [other]),
        "no file": (READY, [read_end]),
    }[what]
    server = hand_out(folder / "s", *given)
    offer = pb.OpenRingResponse(socket=str(folder / "s"), token=bytes(16), capacity=CAPACITY)
    assert fetch(folder / "s", offer) is None
    server.join(10)
    for fd in (good, other, unsealed, read_end, write_end):
        os.close(fd)


def ring_server(path: Path) -> RingServer:
    return RingServer(path, TRANSFERS, batch_pages=16)


def test_socket_when_a_dead_server_left_it_is_taken_over(folder):
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stale.bind(str(folder / "s"))
    stale.close()
    ring_server(folder / "s").close()
    assert not (folder / "s").exists()


def test_socket_when_a_server_listens_is_left_alone(folder):
    first = ring_server(folder / "s")
    assert refusal(lambda: ring_server(folder / "s")) == "RING_SOCKET"
    first.close()


def test_socket_when_a_file_is_there_is_left_alone(folder):
    (folder / "s").write_text("mine")
    assert refusal(lambda: ring_server(folder / "s")) == "RING_SOCKET"
    assert (folder / "s").read_text() == "mine"


def test_socket_when_the_path_is_too_long_is_refused(folder):
    assert refusal(lambda: ring_server(folder / ("x" * 120))) == "RING_SOCKET"


def test_server_when_a_batch_fits_no_ring_is_refused(folder):
    assert refusal(lambda: RingServer(folder / "s", TRANSFERS, batch_pages=1 << 20)) == "BATCH_TOO_LARGE"


def test_offers_when_too_many_are_open_are_limited(folder):
    server = ring_server(folder / "s")
    for _ in range(64):
        server.offer(bytes(16))
    assert refusal(lambda: server.offer(bytes(16))) == "RING_LIMIT"
    server.close()


@pytest.mark.parametrize("what", ["missing", "short", "directory"])
def test_file_when_it_cannot_hold_a_ring_is_refused(tmp_path, what):
    path = {"missing": tmp_path / "none", "short": tmp_path / "short", "directory": tmp_path}[what]
    (tmp_path / "short").write_bytes(bytes(4096))
    assert refusal(lambda: RingFile(path, TRANSFERS, batch_pages=16)) == "RING_FILE"


def test_file_when_a_batch_fits_no_ring_is_refused(tmp_path):
    (tmp_path / "bar").write_bytes(bytes(1 << 20))
    assert refusal(lambda: RingFile(tmp_path / "bar", TRANSFERS, batch_pages=1 << 20)) == "RING_FILE"
