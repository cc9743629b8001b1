"""Pages over real sockets: whole snapshots, single pages, reads; and everything that must be refused."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

import enclave_bridge as eb
from pagegate.client import Client
from pagegate.errors import ConfigError, TransferError
from pagegate.rpc import codec
from pagegate.rpc.codec import Batch
from pagegate.rpc.errors import from_rpc_error
from pagegate.rpc.events import ServerEvent
from pagegate.server import Server
from pagegate.transfer import macs
from pagegate.v1 import transfer_pb2 as pb
from pagegate.v1 import transfer_pb2_grpc as pb_grpc

PAGES = 256
SIZE = PAGES * 4096
BASES = {"book": 1 << 32, "disk": 1 << 33}


class Wire:
    """The protocol by hand, for what the public client would never send."""

    def __init__(self, client: Client, address: str, region: str = "book") -> None:
        self.established = client.session
        self.session = client.session.session
        self.region = client.session.regions[region]
        self.bridge = client._bridge
        self.channel = grpc.insecure_channel(address)
        self.stub = pb_grpc.PageTransferStub(self.channel)
        self.pages = self.channel.stream_stream(
            "/pagegate.v1.PageTransfer/TransferPages", codec.encode, pb.TransferPagesResponse.FromString
        )
        self.transfer_id = os.urandom(16)
        self.transfer = self.bridge.transfer(
            self.transfer_id, region=self.region.number, base_gpa=self.region.base_gpa, pages=PAGES
        )

    def begin(self, *, expected: int = PAGES, mode: int = pb.TRANSFER_MODE_REPLACE, region: int | None = None, **kw):
        number = self.region.number if region is None else region
        mac = self.session.mac(eb.MacPurpose.TRANSFER, macs.begin(self.transfer_id, number, expected, mode))
        fields = {
            "session_id": self.established.session_id,
            "transfer_id": self.transfer_id,
            "region": number,
            "expected_pages": expected,
            "mode": mode,
            "mac": mac,
            **kw,
        }
        return pb.TransferPagesRequest(begin=pb.TransferBegin(**fields))

    def seal(self, data: bytes, first: int = 0) -> bytes:
        return self.session.seal(
            self.transfer, region=self.region.number, first_gpa=self.region.base_gpa + first * 4096, plain=data
        )[0]

    def commit(self, pages: int = PAGES):
        return pb.TransferPagesRequest(
            commit=pb.TransferCommit(pages=pages, mac=self.session.commit_mac(self.transfer))
        )

    def run(self, *messages) -> list:
        """Sends messages and returns the answers; raises the typed refusal."""
        try:
            return list(self.pages(iter(messages), timeout=20))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def page(self, record: bytes, session_id: bytes | None = None):
        try:
            return self.stub.TransferPage(
                pb.TransferPageRequest(
                    session_id=self.established.session_id if session_id is None else session_id, record=record
                ),
                timeout=20,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


@pytest.fixture
def wire(client: Client, server: Server) -> Iterator[Wire]:
    made = Wire(client, server.address)
    yield made
    made.channel.close()


def content(server: Server, region: str = "book") -> bytes:
    fd = server.regions.by_name(region).open_current()
    try:
        return os.pread(fd, SIZE, 0)
    finally:
        os.close(fd)


def refused(reason: str):
    return pytest.raises(TransferError, match=rf"\[{reason}\]")


@pytest.mark.parametrize("region", ["book", "disk"])
def test_send_when_the_region_is_filled_arrives_byte_for_byte(client: Client, server: Server, region: str):
    data = os.urandom(SIZE)
    seen: list[tuple[int, int]] = []
    sent = client.send(region, data, progress=lambda done, total: seen.append((done, total)))
    assert (sent.pages, sent.generation, sent.resumed) == (PAGES, 1, 0)
    assert content(server, region) == data
    assert seen[-1] == (PAGES, PAGES)


def test_send_when_smaller_replaces_the_rest_by_zeros_and_delta_keeps_it(client: Client, server: Server):
    client.send("book", b"a" * SIZE)
    client.send("book", b"b" * 8192, mode="delta", first_gpa=BASES["book"] + 4096)
    assert content(server) == b"a" * 4096 + b"b" * 8192 + b"a" * (SIZE - 12288)
    client.send("book", b"c" * 4096)
    assert content(server) == b"c" * 4096 + bytes(SIZE - 4096)


def test_send_when_batches_are_small_needs_many_acks(serve: Callable[..., Server], connect: Callable[..., Client]):
    from pagegate.handshake.model import Limits

    server = serve(limits=Limits(3600, 3, 5))
    data = os.urandom(SIZE)
    connect(server).send("book", data)
    assert content(server) == data


def test_read_when_committed_gives_the_pages_and_generation(client: Client):
    data = os.urandom(SIZE)
    client.send("disk", data)
    buffer, read = client.read("disk")
    assert buffer == data
    assert (read.pages, read.base_gpa, read.generation) == (PAGES, BASES["disk"], 1)


@pytest.mark.parametrize("region", ["book", "disk"])
def test_send_page_when_accepted_is_visible_and_counts(client: Client, server: Server, region: str):
    client.send(region, b"a" * SIZE)
    generation = client.send_page(region, BASES[region] + 4096, b"p" * 4096)
    assert generation == 2
    assert content(server, region) == b"a" * 4096 + b"p" * 4096 + b"a" * (SIZE - 8192)
    client.send(region, b"z" * 4096, mode="delta")
    client.send_page(region, BASES[region], b"q" * 4096)
    assert content(server, region)[:4096] == b"q" * 4096


@pytest.mark.parametrize("size", [0, 1, 4095, 4097])
def test_send_page_when_not_one_page_is_refused_at_home(client: Client, size: int):
    with refused("LENGTH"):
        client.send_page("book", BASES["book"], bytes(size))


@pytest.mark.parametrize(
    ("gpa", "reason"),
    [(BASES["book"] + 1, "UNALIGNED"), (BASES["book"] - 4096, "OUT_OF_RANGE"), (BASES["book"] + SIZE, "OUT_OF_RANGE")],
)
def test_page_when_its_address_is_bad_is_refused(client: Client, server: Server, gpa: int, reason: str):
    with refused(reason):
        client.send_page("book", gpa, b"x" * 4096)
    assert content(server) == bytes(SIZE)


def test_send_when_the_source_does_not_fit_is_refused_at_home(client: Client):
    with refused("OUT_OF_RANGE"):
        client.send("book", bytes(SIZE + 1))
    with refused("UNALIGNED"):
        client.send("book", b"x", first_gpa=BASES["book"] + 7)
    with pytest.raises(ConfigError, match="MODE"):
        client.send("book", b"x", mode="merge")


def test_region_when_not_asked_for_is_refused_at_home(connect: Callable[..., Client], server: Server):
    reader = connect(server, regions={"book": "read"})
    with refused("REGION_NOT_GRANTED"):
        reader.send("book", b"x")
    with refused("REGION_NOT_GRANTED"):
        reader.send_page("disk", BASES["disk"], bytes(4096))
    assert reader.read("book")[0] == bytes(SIZE)


@pytest.mark.parametrize("position", [0, 20, 40, 47, 48, 2000, 4143, 4144, 4159])
def test_page_when_a_bit_was_changed_is_refused_and_nothing_is_written(wire: Wire, server: Server, position: int):
    record = bytearray(wire.seal(b"x" * 4096))
    record[position] ^= 1
    with pytest.raises(TransferError) as caught:
        wire.page(bytes(record))
    assert caught.value.reason in {"TAMPERED", "WRONG_SESSION", "REGION_UNKNOWN", "UNALIGNED", "OUT_OF_RANGE", "HEADER"}
    assert content(server) == bytes(SIZE)


def test_page_when_replayed_is_refused(wire: Wire):
    record = wire.seal(b"x" * 4096)
    assert wire.page(record).generation == 1
    with refused("REPLAYED"):
        wire.page(record)


@pytest.mark.parametrize("size", [0, 47, 4159, 4161, 8320])
def test_page_when_the_record_is_not_one_record_is_refused(wire: Wire, size: int):
    with refused("LENGTH"):
        wire.page(bytes(size))


@pytest.mark.parametrize("session_id", [b"", bytes(16), b"x" * 16, b"x" * 17])
def test_page_when_the_session_is_unknown_is_refused(wire: Wire, session_id: bytes):
    with refused("SESSION_UNKNOWN"):
        wire.page(wire.seal(b"x" * 4096), session_id)


def test_session_when_sixteen_pages_were_tampered_is_closed(wire: Wire):
    for _ in range(16):
        record = bytearray(wire.seal(b"x" * 4096))
        record[100] ^= 1
        with refused("TAMPERED"):
            wire.page(bytes(record))
    with refused("SESSION_CLOSED"):
        wire.page(wire.seal(b"x" * 4096))


def test_batch_when_tampered_ends_the_stream_and_stays_invisible(wire: Wire, server: Server):
    good = wire.seal(b"x" * 4096 * 8)
    bad = bytearray(wire.seal(b"y" * 4096 * 8, 8))
    bad[3 * 4160 + 500] ^= 4
    with refused("TAMPERED") as caught:
        wire.run(wire.begin(expected=16), Batch(good, 0), Batch(bytes(bad), 1))
    assert caught.value.metadata["record"] == "3"
    assert content(server) == bytes(SIZE)
    assert server.regions.by_name("book").generation == 0


def test_commit_when_pages_are_missing_is_refused(wire: Wire, server: Server):
    with refused("TRANSFER_INCOMPLETE"):
        wire.run(wire.begin(), Batch(wire.seal(b"x" * 4096), 0), wire.commit())
    assert server.regions.by_name("book").generation == 0


def test_commit_when_its_mac_is_wrong_is_refused(wire: Wire, server: Server):
    commit = pb.TransferPagesRequest(commit=pb.TransferCommit(pages=1, mac=bytes(48)))
    with refused("MAC"):
        wire.run(wire.begin(expected=1), Batch(wire.seal(b"x" * 4096), 0), commit)
    assert server.regions.by_name("book").generation == 0


def test_commit_when_repeated_after_a_lost_answer_is_answered_again(wire: Wire, server: Server):
    batch = Batch(wire.seal(b"x" * SIZE), 0)
    first = wire.run(wire.begin(), batch, wire.commit())
    again = wire.run(wire.begin(), wire.commit())
    assert first[-1].committed == again[-1].committed
    assert again[0].begun.resume_at_batch == 1
    assert server.regions.by_name("book").generation == 1


def test_abort_when_sent_drops_the_staged_pages(wire: Wire, server: Server):
    abort = pb.TransferPagesRequest(
        abort=pb.TransferAbort(mac=wire.session.mac(eb.MacPurpose.TRANSFER, macs.abort(wire.transfer_id)))
    )
    wire.run(wire.begin(), Batch(wire.seal(b"x" * 4096), 0), abort)
    assert not server.regions.by_name("book").writing
    assert content(server) == bytes(SIZE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mac": bytes(48)}, "MAC"),
        ({"session_id": bytes(16)}, "SESSION_UNKNOWN"),
        ({"expected_pages": 255}, "MAC"),
        ({"transfer_id": bytes(16)}, "MAC"),
    ],
)
def test_begin_when_changed_on_the_way_is_refused(wire: Wire, change: dict, reason: str):
    with refused(reason):
        wire.run(wire.begin(**change))


@pytest.mark.parametrize(
    ("kw", "reason"),
    [
        ({"mode": 0}, "MALFORMED_MESSAGE"),
        ({"mode": 9}, "MALFORMED_MESSAGE"),
        ({"expected": 0}, "OUT_OF_RANGE"),
        ({"expected": PAGES + 1}, "OUT_OF_RANGE"),
        ({"region": 0}, "REGION_UNKNOWN"),
        ({"region": 77}, "REGION_UNKNOWN"),
    ],
)
def test_begin_when_it_asks_for_nonsense_is_refused(wire: Wire, kw: dict, reason: str):
    with refused(reason):
        wire.run(wire.begin(**kw))


def test_region_when_granted_for_reading_only_refuses_writes(connect: Callable[..., Client], server: Server):
    wire = Wire(connect(server, regions={"book": "read"}), server.address)
    with refused("REGION_NOT_GRANTED"):
        wire.run(wire.begin())
    with refused("REGION_NOT_GRANTED"):
        wire.page(wire.seal(bytes(4096)))
    wire.channel.close()


@pytest.mark.parametrize("number", [1, 2, 2**63])
def test_batch_when_its_number_is_not_the_next_is_refused(wire: Wire, number: int):
    with refused("BATCH_OUT_OF_ORDER"):
        wire.run(wire.begin(), Batch(wire.seal(b"x" * 4096), number))


def test_batch_when_over_the_limit_is_refused(serve: Callable[..., Server], connect: Callable[..., Client]):
    from pagegate.handshake.model import Limits

    server = serve(limits=Limits(3600, 4, 5))
    wire = Wire(connect(server), server.address)
    with refused("BATCH_TOO_LARGE"):
        wire.run(wire.begin(), Batch(wire.seal(b"x" * 5 * 4096), 0))
    wire.channel.close()


@pytest.mark.parametrize("cut", [1, 4159, 4161])
def test_batch_when_its_records_are_not_whole_is_refused(wire: Wire, cut: int):
    with refused("LENGTH"):
        wire.run(wire.begin(), Batch(wire.seal(b"x" * 8192)[:cut], 0))


def test_stream_when_it_starts_without_begin_is_refused(wire: Wire):
    with refused("OUT_OF_ORDER"):
        wire.run(Batch(wire.seal(b"x" * 4096), 0))
    with refused("OUT_OF_ORDER"):
        wire.run(wire.begin(), wire.begin())
    with refused("TRANSFER_TRUNCATED"):
        wire.run()


def test_stream_when_broken_resumes_where_the_server_is(wire: Wire, server: Server):
    half = Batch(wire.seal(b"x" * (SIZE // 2)), 0)
    with refused("TRANSFER_TRUNCATED"):
        wire.run(wire.begin(), half)
    rest = Batch(wire.seal(b"y" * (SIZE // 2), PAGES // 2), 1)
    answers = wire.run(wire.begin(), rest, wire.commit())
    assert answers[0].begun.resume_at_batch == 1
    assert answers[-1].committed.generation == 1
    assert content(server) == b"x" * (SIZE // 2) + b"y" * (SIZE // 2)


def test_stream_when_resumed_under_a_new_session_goes_on(wire: Wire, server: Server, client: Client):
    with refused("TRANSFER_TRUNCATED"):
        wire.run(wire.begin(), Batch(wire.seal(b"x" * (SIZE // 2)), 0))
    wire.established = client.attest()
    wire.session = wire.established.session
    answers = wire.run(wire.begin(), Batch(wire.seal(b"y" * (SIZE // 2), PAGES // 2), 1), wire.commit())
    assert answers[0].begun.resume_at_batch == 1
    assert content(server) == b"x" * (SIZE // 2) + b"y" * (SIZE // 2)


def test_resume_when_begin_says_otherwise_is_refused(wire: Wire):
    with refused("TRANSFER_TRUNCATED"):
        wire.run(wire.begin(), Batch(wire.seal(b"x" * 4096), 0))
    with refused("TRANSFER_MISMATCH"):
        wire.run(wire.begin(expected=3))


def test_region_when_another_peer_writes_is_busy_until_it_is_stale(
    serve: Callable[..., Server], connect: Callable[..., Client], platform_for
):
    server = serve(stale_transfer_s=0.2)
    first = Wire(connect(server), server.address)
    hold = threading.Event()

    def slow():
        yield first.begin()
        hold.wait(10)

    call = first.pages(slow())
    assert next(call).begun.resume_at_batch == 0
    other = connect(server, platform=platform_for("client", chip="another"))
    rival = Wire(other, server.address)
    with refused("REGION_BUSY") as caught:
        rival.run(rival.begin())
    assert caught.value.retry_after == pytest.approx(0.5)
    with refused("REGION_BUSY"):
        rival.page(rival.seal(bytes(4096)))
    hold.set()
    call.cancel()
    deadline = time.monotonic() + 10
    while True:
        try:
            assert other.send("book", b"w" * SIZE).generation == 1
            break
        except TransferError as error:
            assert error.reason == "REGION_BUSY"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert content(server) == b"w" * SIZE
    first.channel.close()
    rival.channel.close()


def test_transfer_when_a_second_stream_drives_it_is_in_use(wire: Wire):
    hold = threading.Event()

    def slow():
        yield wire.begin()
        hold.wait(10)

    call = wire.pages(slow())
    next(call)
    with refused("TRANSFER_IN_USE"):
        wire.run(wire.begin())
    hold.set()
    call.cancel()


def test_session_when_expired_is_refused_and_the_client_attests_again(
    serve: Callable[..., Server], connect: Callable[..., Client]
):
    from pagegate.handshake.model import Limits

    server = serve(limits=Limits(0.3, 256, 32))
    client = connect(server)
    wire = Wire(client, server.address)
    time.sleep(0.35)
    with refused("SESSION_EXPIRED"):
        wire.page(wire.seal(bytes(4096)))
    assert client.send_page("book", BASES["book"], b"n" * 4096) == 1
    assert content(server)[:4096] == b"n" * 4096
    wire.channel.close()


def test_get_region_when_the_request_was_changed_is_refused(wire: Wire):
    request = pb.GetRegionRequest(
        session_id=wire.established.session_id,
        region=wire.region.number,
        first_gpa=wire.region.base_gpa,
        pages=1,
        transfer_id=wire.transfer_id,
        mac=bytes(48),
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(wire.stub.GetRegion(request))
    assert from_rpc_error(caught.value).reason == "MAC"


def test_get_region_when_to_the_end_streams_from_the_first_address(wire: Wire, client: Client):
    client.send("book", b"k" * SIZE)
    gpa = wire.region.base_gpa + 10 * 4096
    mac = wire.session.mac(eb.MacPurpose.TRANSFER, macs.get(wire.transfer_id, wire.region.number, gpa, 0))
    request = pb.GetRegionRequest(
        session_id=wire.established.session_id,
        region=wire.region.number,
        first_gpa=gpa,
        pages=0,
        transfer_id=wire.transfer_id,
        mac=mac,
    )
    answers = list(wire.stub.GetRegion(request))
    assert answers[0].info.generation == 1
    assert answers[-1].end.pages == PAGES - 10
    assert sum(len(a.batch.records) for a in answers) == (PAGES - 10) * 4160


def test_server_when_abused_goes_on_serving(wire: Wire, client: Client, server: Server):
    channel = grpc.insecure_channel(server.address)
    raw = channel.stream_stream("/pagegate.v1.PageTransfer/TransferPages", lambda b: b, lambda b: b)
    for garbage in (b"\xff" * 64, b"\x12", b"\x0a\xff\xff\xff\xff\x0f", os.urandom(512)):
        with pytest.raises(grpc.RpcError):
            list(raw(iter([garbage]), timeout=10))
    channel.close()
    assert client.send("book", b"o" * SIZE).generation == 1


def test_client_when_the_server_restarts_attests_again_and_sends_whole(
    serve: Callable[..., Server], connect: Callable[..., Client]
):
    first = serve()
    client = connect(first)
    client.send("disk", b"1" * SIZE)
    address = first.address
    first.stop(0.2)
    second = serve(listen=address)
    assert client.send("disk", b"2" * SIZE).generation == 2
    assert content(second, "disk") == b"2" * SIZE


def test_policy_when_changed_closes_sessions_that_it_no_longer_admits(server: Server, client: Client, appraiser):
    from dataclasses import replace

    client.send_page("book", BASES["book"], bytes(4096))
    assert server.reappraise(appraiser, lambda verdict, now: verdict) == 0
    assert server.reappraise(appraiser, lambda verdict, now: replace(verdict, accepted=False)) == 1
    assert len(server.sessions) == 0
    assert client.send_page("book", BASES["book"], bytes(4096)) == 2


def test_send_when_the_session_ends_between_commit_and_answer_sends_again(serve, connect) -> None:
    ended: list[int] = []

    def end_sessions(event: ServerEvent) -> None:
        if event.kind == "commit" and not ended:
            ended.append(server.attest_again())

    server = serve(observer=end_sessions)
    client = connect(server)
    data = os.urandom(PAGES * 4096)
    assert client.send("book", data).generation == 2
    assert ended == [1]
    assert bytes(client.read("book")[0]) == data
