"""The binding's channel: pages through shared memory between two bridges."""

import fcntl
import mmap
import os
import threading

import pytest

from enclave_bridge import (
    PAGE_SIZE,
    RECORD_SIZE,
    RECORDS_KIND,
    BridgeStatusError,
    Channel,
    ChannelRecords,
    Role,
    channel_capacity,
    create_channel,
    format_channel,
)
from unit.enclave_bridge.pairs import BASE_GPA, REGION, connect, pages

PAGES = 8
CAPACITY = channel_capacity(PAGES)


@pytest.fixture
def ends():
    fd = create_channel(CAPACITY)
    try:
        yield Channel(fd, CAPACITY, role=Role.CLIENT), Channel(fd, CAPACITY, role=Role.SERVER)
    finally:
        os.close(fd)


def refusal(call) -> str:
    with pytest.raises(BridgeStatusError) as caught:
        call()
    return caught.value.reason


def test_pages_when_sealed_into_a_channel_arrive(ends, backend):
    client, server = ends
    pair = connect(backend=backend)
    sent, received = pair.transfers(PAGES)
    target = bytearray(PAGES * PAGE_SIZE)
    received.target_memory(target)
    sealed = client.seal(
        pair.client, sent, region=REGION, first_gpa=BASE_GPA, plain=pages(PAGES), number=7, timeout_s=1
    )
    message = server.next(1)
    assert (message.kind, message.number, message.size) == (RECORDS_KIND, 7, PAGES * RECORD_SIZE)
    records = ChannelRecords(server, message.size)
    opened = records.open(pair.server, received)
    assert (len(records), opened.pages, opened.sequence) == (PAGES * RECORD_SIZE, PAGES, sealed.sequence)
    assert target == pages(PAGES)


def test_pages_when_the_bridge_has_the_channels_memory_arrive(backend):
    pair = connect(backend=backend)
    sent, received = pair.transfers(PAGES)
    target, ring = os.memfd_create("target"), create_channel(CAPACITY)
    try:
        os.ftruncate(target, PAGES * PAGE_SIZE)
        received.target_fd(target)
        client = Channel(ring, CAPACITY, role=Role.CLIENT, session=pair.client)
        server = Channel(ring, CAPACITY, role=Role.SERVER, session=pair.server)
        for number in range(5):  # once around the ring
            client.seal(
                pair.client, sent, region=REGION, first_gpa=BASE_GPA, plain=pages(PAGES), number=number, timeout_s=1
            )
            assert server.next(1).number == number
            assert server.open(pair.server, received).pages == PAGES
        assert os.pread(target, PAGES * PAGE_SIZE, 0) == pages(PAGES)
        client.put(2, b"control", timeout_s=0)
        assert server.next(1).kind == 2
        assert server.take(7) == b"control"
    finally:
        os.close(target)
        os.close(ring)


def test_record_when_of_another_session_is_refused_with_how_far_it_got(ends, backend):
    client, server = ends
    pair, other = connect(backend=backend), connect(backend=backend)
    _, received = pair.transfers(PAGES)
    received.target_memory(bytearray(PAGES * PAGE_SIZE))
    client.seal(other.client, None, region=REGION, first_gpa=BASE_GPA, plain=pages(2), number=0, timeout_s=1)
    server.next(1)
    with pytest.raises(BridgeStatusError) as caught:
        server.open(pair.server, received)
    assert caught.value.result.bad_index == 0


def test_message_when_put_is_taken_once(ends):
    client, server = ends
    client.put(9, b"hello", number=3, timeout_s=0)
    assert refusal(lambda: server.take(4)) == "BUFFER"
    assert server.next(0).kind == 9
    assert server.take(5) == b"hello"
    assert server.next(0) is None
    assert refusal(lambda: server.take(5)) == "STATE"


def test_next_when_nothing_comes_is_none_after_the_timeout(ends):
    assert ends[0].next(0.01) is None


def test_put_when_nobody_reads_times_out(ends):
    def fill():
        while True:
            ends[0].put(9, bytes(PAGE_SIZE), timeout_s=0.01)

    assert refusal(fill) == "RING_TIMEOUT"


@pytest.mark.parametrize("call", ["seal", "put"])
def test_buffer_when_a_call_fails_is_not_held_by_the_traceback(ends, call):
    """Before Python 3.13 the garbage collector clears a memoryview in a cycle even while it is exported: a crash."""
    pair = connect()
    view = memoryview(pages(PAGES))

    def fill() -> None:
        while True:
            if call == "put":
                ends[0].put(9, view, timeout_s=0)
            else:
                ends[0].seal(pair.client, None, region=REGION, first_gpa=BASE_GPA, plain=view, number=0, timeout_s=0)

    with pytest.raises(BridgeStatusError) as caught:
        fill()
    view.release()  # raises BufferError where it is still exported
    assert caught.tb is not None


def test_close_when_another_thread_waits_ends_it(ends):
    client, server = ends
    reasons = []
    waiting = threading.Thread(target=lambda: reasons.append(refusal(lambda: server.next(60))))
    waiting.start()
    with client:
        pass
    waiting.join(20)
    assert reasons == ["RING_CLOSED"]


def test_capacity_when_a_batch_is_too_long_for_any_is_refused():
    assert channel_capacity(1) == 16384
    assert channel_capacity(256) == 4 << 20
    assert refusal(lambda: channel_capacity(1 << 20)) == "LENGTH"


def test_memory_when_it_could_be_cut_is_refused_unless_named():
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 4 * CAPACITY)
        format_channel(fd, CAPACITY)
        assert refusal(lambda: Channel(fd, CAPACITY, role=Role.CLIENT)) == "RING_MEMORY"
        client = Channel(fd, CAPACITY, role=Role.CLIENT, named=True)
        client.put(2, b"", timeout_s=0)
        server = Channel(fd, CAPACITY, role=Role.SERVER, named=True)
        assert server.next(1).size == 0
    finally:
        os.close(fd)


def test_memory_when_created_is_sealed():
    fd = create_channel(CAPACITY)
    try:
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_index_when_the_peer_writes_an_impossible_one_is_corrupt(ends):
    fd = create_channel(CAPACITY)
    try:
        server = Channel(fd, CAPACITY, role=Role.SERVER)
        with mmap.mmap(fd, os.fstat(fd).st_size) as memory:
            memory[128:136] = b"\xff" * 8  # the client's position
        assert refusal(lambda: server.next(1)) == "RING_CORRUPT"
        assert refusal(lambda: server.next(1)) == "RING_CORRUPT"
    finally:
        os.close(fd)
