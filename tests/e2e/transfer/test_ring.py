"""Transfers through shared memory on one host: what works, and every way in which a peer may be hostile or die."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from google.rpc.status_pb2 import Status

import enclave_bridge as eb
from pagegate.client import Client
from pagegate.errors import ConfigError, TransferError
from pagegate.handshake.model import Limits
from pagegate.rpc.errors import from_rpc_error, from_status
from pagegate.rpc.ring import METADATA, READY, REFUSED, REQUEST, RESPONSE
from pagegate.rpc.ring_client import ClientLink
from pagegate.server import Server
from pagegate.transfer import macs
from pagegate.v1 import transfer_pb2 as pb
from pagegate.v1 import transfer_pb2_grpc as pb_grpc

PAGES = 256
BATCH = 16
SIZE = PAGES * 4096
PEERS = [sys.executable, str(Path(__file__).with_name("ring_peers.py"))]


@pytest.fixture
def socket_path():
    """Short enough for a Unix socket."""
    path = Path(f"/tmp/pagegate-ring-{os.getpid()}-{os.urandom(4).hex()}")
    yield path
    assert not path.exists(), "the server left its socket"


@pytest.fixture
def ring_server(socket_path, serve) -> Server:
    server = serve(ring_socket=socket_path, limits=Limits(3600.0, BATCH, 8), stale_transfer_s=0.1)
    server._rings._patience_s = 1.0
    return server


@pytest.fixture
def sender(connect, ring_server) -> Client:
    return connect(ring_server, ring=True)


def content(server: Server, region: str = "book") -> bytes:
    fd = server.regions.by_name(region).open_current()
    try:
        return os.pread(fd, SIZE, 0)
    finally:
        os.close(fd)


def eventually(true, what: str) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class RawRing:
    """A ring by hand, with the memory that a hostile client sees."""

    def __init__(self, server: Server, client: Client, token: bytes | None = None) -> None:
        self.client = client
        offer = server._rings.offer(client.session.session_id)
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.connect(offer.socket)
        self.connection.sendall(offer.token if token is None else token)
        self.greeting, fds, _, _ = socket.recv_fds(self.connection, 1, 1)
        if not fds:
            return
        self.fd = fds[0]
        self.channel = eb.Channel(self.fd, offer.capacity, role=eb.Role.CLIENT)
        self.link = ClientLink(self.channel, self.connection)
        granted = client.session.regions["book"]
        self.region = granted
        self.transfer_id = os.urandom(16)
        self.transfer = client._bridge.transfer(
            self.transfer_id, region=granted.number, base_gpa=granted.base_gpa, pages=PAGES
        )

    def begin(self, **fields) -> None:
        session = self.client.session
        mode = pb.TRANSFER_MODE_REPLACE
        mac = session.session.mac(eb.MacPurpose.TRANSFER, macs.begin(self.transfer_id, self.region.number, PAGES, mode))
        begin = {
            "session_id": session.session_id,
            "transfer_id": self.transfer_id,
            "region": self.region.number,
            "expected_pages": PAGES,
            "mode": mode,
            "mac": mac,
        }
        self.request(begin=pb.TransferBegin(**{**begin, **fields}))

    def request(self, **step) -> None:
        self.link.put(REQUEST, pb.TransferPagesRequest(**step).SerializeToString())

    def seal(self, number: int) -> bytes:
        return self.client.session.session.seal(
            self.transfer,
            region=self.region.number,
            first_gpa=self.region.base_gpa + number * BATCH * 4096,
            plain=os.urandom(BATCH * 4096),
        )[0]

    def answer(self) -> tuple[int, bytes]:
        message = self.link.next(10)
        return message.kind, self.link.take()

    def refusal(self) -> str:
        """The reason that the transfer ends with; acknowledgements before it are passed over."""
        while True:
            kind, answer = self.answer()
            if kind == REFUSED:
                return from_status(Status.FromString(answer)).reason

    def close(self) -> None:
        if self.greeting == READY:
            self.link.close()
            os.close(self.fd)
        self.connection.close()


@pytest.fixture
def raw(ring_server, connect):
    """raw(token=...): a ring in the hands of an attested client that does what it likes."""
    made = []

    def open_ring(**kw) -> RawRing:
        made.append(RawRing(ring_server, connect(ring_server), **kw))
        return made[-1]

    yield open_ring
    for ring in made:
        ring.close()


# ---- what works -----------------------------------------------------------------------


def test_send_when_the_server_is_on_this_host_goes_through_shared_memory(ring_server, sender):
    for generation in (1, 2, 3):
        data = os.urandom(SIZE)
        assert sender.send("book", data).generation == generation
        assert sender.ring_in_use
        assert content(ring_server) == data
    assert sender.read("book")[0] == data


def test_send_when_pages_are_few_or_a_delta_is_committed_alike(ring_server, sender):
    sender.send("book", b"a" * SIZE)
    base = sender.session.regions["book"].base_gpa
    sender.send("book", b"b" * 4096, first_gpa=base + 17 * 4096, mode="delta")
    assert content(ring_server) == b"a" * 17 * 4096 + b"b" * 4096 + b"a" * (SIZE - 18 * 4096)


def test_send_when_both_sides_write_files_is_durable(ring_server, sender, tmp_path):
    data = os.urandom(SIZE)
    sender.send("disk", data)
    assert content(ring_server, "disk") == data


def test_send_when_progress_is_wanted_reports_acknowledged_pages(sender):
    seen = []
    sender.send("book", bytes(SIZE), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (PAGES, PAGES)
    assert len(seen) > 1


def test_send_when_the_server_offers_none_goes_by_grpc(serve, connect):
    client = connect(serve(), ring=True)
    assert client.send("book", bytes(SIZE)).generation == 1
    assert not client.ring_in_use


def test_send_when_the_socket_is_not_on_this_host_goes_by_grpc(ring_server, connect):
    client = connect(ring_server, ring=Path("/nonexistent/ring"))
    assert client.send("book", bytes(SIZE)).generation == 1
    assert not client.ring_in_use


def test_send_when_not_wanted_goes_by_grpc(ring_server, connect):
    client = connect(ring_server)
    client.send("book", bytes(SIZE))
    assert not client.ring_in_use


def test_send_when_the_session_has_ended_attests_and_fetches_another_ring(ring_server, sender):
    sender.send("book", bytes(SIZE))
    ring_server.sessions.close()
    sent = sender.send("book", b"x" * SIZE)
    assert (sent.generation, sent.resumed) == (2, 1)
    assert content(ring_server) == b"x" * SIZE


def test_clients_when_several_send_at_once_do_not_meet(ring_server, connect):
    clients = {name: connect(ring_server, ring=True) for name in ("book", "disk")}
    data = {name: os.urandom(SIZE) for name in clients}
    threads = [threading.Thread(target=client.send, args=(name, data[name])) for name, client in clients.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(content(ring_server, name) == data[name] for name in clients)


# ---- what breaks and goes on ----------------------------------------------------------


class Interrupting:
    """Pages that do something in the middle of a transfer."""

    pages = PAGES

    def __init__(self, at: int, action) -> None:
        self._at = at
        self._action = action

    def read(self, first: int, count: int) -> bytes:
        if first >= self._at and self._action is not None:
            action, self._action = self._action, None
            action()
        return bytes([1 + first // BATCH]) * (count * 4096)


def test_send_when_the_ring_breaks_in_the_middle_is_resumed_by_grpc(ring_server, sender):
    def break_it():
        for link in list(ring_server._rings._links):
            link.close()

    sent = sender.send("book", Interrupting(96, break_it))
    assert (sent.generation, sent.resumed) == (1, 1)
    assert not sender.ring_in_use
    assert content(ring_server) == b"".join(bytes([1 + i]) * (BATCH * 4096) for i in range(PAGES // BATCH))


def test_send_when_the_source_fails_says_why_and_leaves_the_region(ring_server, sender):
    sender.send("book", b"a" * SIZE)

    def fail():
        raise TransferError("SOURCE_UNREADABLE", "the disk is gone")

    with pytest.raises(TransferError, match="the disk is gone"):
        sender.send("book", Interrupting(96, fail))
    assert content(ring_server) == b"a" * SIZE
    assert sender.send("book", b"b" * SIZE).generation == 2


def test_refusal_when_the_region_is_busy_names_its_reason(ring_server, sender, connect):
    other = connect(ring_server, ring=True, max_resumes=0)

    def busy():
        with pytest.raises(TransferError) as caught:
            other.send("book", bytes(SIZE))
        assert caught.value.reason == "REGION_BUSY"

    assert sender.send("book", Interrupting(96, busy)).generation == 1


# ---- a hostile client --------------------------------------------------------------------


def test_record_when_a_bit_is_flipped_is_tampered_and_nothing_is_visible(ring_server, raw, sender):
    sender.send("book", b"a" * SIZE)
    ring = raw()
    ring.begin()
    assert ring.answer()[0] == RESPONSE
    records = bytearray(ring.seal(0))
    records[3 * eb.RECORD_SIZE + 100] ^= 1
    ring.channel.put(eb.RECORDS_KIND, records, number=0, timeout_s=1)
    assert ring.refusal() == "TAMPERED"
    assert content(ring_server) == b"a" * SIZE
    assert sender.send("book", b"b" * SIZE).generation == 2


def test_commit_when_pages_are_missing_is_refused(ring_server, raw):
    ring = raw()
    ring.begin()
    ring.channel.put(eb.RECORDS_KIND, ring.seal(0), number=0, timeout_s=1)
    mac = ring.client.session.session.commit_mac(ring.transfer)
    ring.request(commit=pb.TransferCommit(pages=BATCH, mac=mac))
    assert ring.refusal() == "TRANSFER_INCOMPLETE"
    assert content(ring_server) == bytes(SIZE)


def test_batch_when_larger_than_granted_is_refused(raw):
    ring = raw()
    ring.begin()
    ring.channel.put(eb.RECORDS_KIND, ring.seal(0) + ring.seal(1)[: eb.RECORD_SIZE], number=0, timeout_s=1)
    assert ring.refusal() == "BATCH_TOO_LARGE"


def test_begin_when_of_another_session_is_refused(raw, connect, ring_server):
    ring = raw()
    ring.begin(session_id=connect(ring_server).session.session_id)
    assert ring.refusal() == "WRONG_SESSION"


@pytest.mark.parametrize("kind", [eb.RECORDS_KIND, RESPONSE, 77])
def test_message_when_it_is_not_begin_ends_the_ring(raw, kind):
    ring = raw()
    ring.channel.put(kind, bytes(eb.RECORD_SIZE), timeout_s=1)
    with pytest.raises(TransferError) as caught:
        ring.answer()
    assert caught.value.reason == "RING_CLOSED"


@pytest.mark.parametrize(("kind", "message"), [(REQUEST, b"\xff"), (METADATA, b"{"), (77, b"")])
def test_message_when_malformed_in_the_middle_ends_the_transfer(raw, kind, message, ring_server):
    ring = raw()
    ring.begin()
    assert ring.answer()[0] == RESPONSE
    ring.link.put(kind, message)
    assert ring.refusal() in ("TRANSFER_TRUNCATED", "MALFORMED_MESSAGE")
    eventually(lambda: not ring_server._rings._links, "the ring is still open")


def test_transfer_when_the_server_drains_is_told_to_go_elsewhere(ring_server, raw):
    ring, another = raw(), raw()
    ring.begin()
    assert ring.answer()[0] == RESPONSE
    assert not ring_server.gate.wait_idle(0)
    ring_server.gate.drain(0)
    ring.channel.put(eb.RECORDS_KIND, ring.seal(0), number=0, timeout_s=1)
    assert ring.refusal() == "DRAINING"
    assert ring_server.gate.wait_idle(10)
    another.begin()
    assert another.refusal() == "DRAINING"


def test_client_when_it_stops_in_the_middle_is_given_up_and_the_region_is_free(ring_server, raw, sender):
    ring = raw()
    ring.begin()
    assert ring.answer()[0] == RESPONSE
    assert ring.refusal() in ("TRANSFER_TRUNCATED", "RING_TIMEOUT")
    assert sender.send("book", b"b" * SIZE).generation == 1


def test_client_when_it_stops_reading_is_given_up(ring_server, raw):
    ring = raw()

    def flood() -> None:
        while True:  # the answers fill the server's ring; none is read
            ring.begin()
            ring.request(abort=abort(ring))

    with pytest.raises(TransferError):
        flood()
    eventually(lambda: not ring_server._rings._links, "the ring is still open")


def abort(ring: RawRing) -> pb.TransferAbort:
    session = ring.client.session.session
    return pb.TransferAbort(mac=session.mac(eb.MacPurpose.TRANSFER, macs.abort(ring.transfer_id)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_client_when_it_scribbles_over_the_memory_harms_only_itself(ring_server, raw, connect, seed):
    honest = connect(ring_server)
    honest.send("book", b"a" * SIZE)
    ring = raw()
    hostile = ring.client
    hostile._ring._link = ring.link
    hostile._max_resumes = 0
    scribbler = subprocess.Popen(
        [*PEERS, "scribble", str(ring.fd), str(seed)], pass_fds=[ring.fd], stdout=subprocess.PIPE, text=True
    )
    try:
        assert scribbler.stdout is not None
        assert scribbler.stdout.readline() == "scribbling\n"
        generation = 1
        for _ in range(50):
            try:
                generation = hostile.send("book", b"b" * SIZE).generation
            except TransferError as error:
                assert error.reason
                break
        assert content(ring_server) == (b"a" if generation == 1 else b"b") * SIZE
    finally:
        scribbler.kill()
        scribbler.communicate()
    assert honest.send("book", b"c" * SIZE).generation == generation + 1
    assert content(ring_server) == b"c" * SIZE


def test_client_when_killed_in_the_middle_frees_everything(ring_server, sender, simulated_root):
    sender.send("book", b"a" * SIZE)
    before = len(ring_server._rings._links)
    arguments = ["send", ring_server.address, str(simulated_root._directory), "96"]
    killed = subprocess.Popen([*PEERS, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "stopped\n"
        assert len(ring_server._rings._links) == before + 1
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    eventually(lambda: len(ring_server._rings._links) == before, "the ring of the dead client is still open")
    assert content(ring_server) == b"a" * SIZE
    assert sender.send("book", b"b" * SIZE).generation == 2


# ---- a stranger, and the way between -------------------------------------------------------


def test_token_when_wrong_or_used_hands_nothing_over(ring_server, raw, connect):
    assert raw(token=bytes(16)).greeting == b""
    client = connect(ring_server)
    offer = ring_server._rings.offer(client.session.session_id)
    for expected in (READY, b""):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(offer.socket)
            connection.sendall(offer.token)
            greeting, fds, _, _ = socket.recv_fds(connection, 1, 1)
            assert greeting == expected
            for fd in fds:
                os.close(fd)


def test_stranger_when_it_says_nothing_or_goes_does_not_stop_others(ring_server, sender, socket_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(str(socket_path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone:
            gone.connect(str(socket_path))
            gone.sendall(b"short")
        sender.send("book", bytes(SIZE))
        assert sender.ring_in_use


def test_rings_when_all_are_in_use_leave_further_clients_to_grpc(ring_server, connect):
    ring_server._rings._slots = threading.Semaphore(0)
    client = connect(ring_server, ring=True)
    assert client.send("book", bytes(SIZE)).generation == 1
    assert not client.ring_in_use


def test_offer_when_changed_on_the_way_is_refused(connect, ring_server):
    client = connect(ring_server, ring=True)
    client.attest()
    honest = client._open_ring

    def changed(request, **kw):
        offer = honest(request, **kw)
        offer.socket = "/tmp/elsewhere"
        return offer

    client._open_ring = changed
    with pytest.raises(TransferError) as caught:
        client.send("book", bytes(SIZE))
    assert caught.value.reason == "MAC"


def test_request_when_not_of_the_attested_peer_gets_no_offer(connect, ring_server):
    client = connect(ring_server)
    with grpc.insecure_channel(ring_server.address) as channel:
        request = pb.OpenRingRequest(session_id=client.session.session_id, nonce=bytes(16), mac=bytes(48))
        with pytest.raises(grpc.RpcError) as caught:
            pb_grpc.PageTransferStub(channel).OpenRing(request)
    assert from_rpc_error(caught.value).reason == "MAC"
    assert not ring_server._rings._offers


# ---- a file that two machines map ------------------------------------------------------------


@pytest.fixture
def bar(tmp_path) -> Path:
    """Stands for the BAR of an ivshmem device."""
    path = tmp_path / "bar"
    path.write_bytes(bytes(16 << 20))
    return path


@pytest.fixture
def file_server(bar, serve) -> Server:
    server = serve(ring_file=bar, limits=Limits(3600.0, BATCH, 8), stale_transfer_s=0.1)
    server._rings._patience_s = server._rings._idle_s = 1.0
    return server


def test_send_when_both_map_the_same_file_goes_through_it(file_server, connect, bar):
    client = connect(file_server, ring=bar)
    for generation in (1, 2):
        data = os.urandom(SIZE)
        assert client.send("book", data).generation == generation
        assert client.ring_in_use
        assert content(file_server) == data


def test_send_when_another_client_has_the_file_goes_by_grpc_until_it_is_free(file_server, connect, bar):
    first, second = connect(file_server, ring=bar), connect(file_server, ring=bar)
    first.send("book", bytes(SIZE))
    assert second.send("book", b"2" * SIZE).generation == 2
    assert (first.ring_in_use, second.ring_in_use) == (True, False)
    first.close()
    eventually(lambda: file_server._rings._link is None, "the file is still held")
    third = connect(file_server, ring=bar)
    third.send("book", b"3" * SIZE)
    assert third.ring_in_use


def test_send_when_this_side_knows_no_file_goes_by_grpc(file_server, connect):
    client = connect(file_server, ring=True)
    assert client.send("book", bytes(SIZE)).generation == 1
    assert not client.ring_in_use


def test_send_when_this_side_names_another_file_says_so(file_server, connect, tmp_path):
    (tmp_path / "other").write_bytes(bytes(16 << 20))
    for wrong in ("other", "none"):
        with pytest.raises(ConfigError) as caught:
            connect(file_server, ring=tmp_path / wrong).send("book", bytes(SIZE))
        assert caught.value.reason == "RING_FILE"
        eventually(lambda: file_server._rings._link is None, "the file is still held")


def test_file_when_its_client_is_idle_is_given_to_the_next(file_server, connect, bar):
    idle = connect(file_server, ring=bar)
    idle.send("book", bytes(SIZE))
    eventually(lambda: file_server._rings._link is None, "the file is still held")
    assert connect(file_server, ring=bar).send("book", b"2" * SIZE).generation == 2
    assert idle.send("book", b"3" * SIZE).generation == 3
    assert content(file_server) == b"3" * SIZE


def test_server_when_given_a_socket_and_a_file_is_refused(serve, bar, socket_path):
    with pytest.raises(ConfigError) as caught:
        serve(ring_file=bar, ring_socket=socket_path)
    assert caught.value.reason == "RING_FILE"
