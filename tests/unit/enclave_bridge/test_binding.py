"""The binding: buffers, handles, errors, fork and threads."""

from __future__ import annotations

import array
import gc
import mmap
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.enclave_bridge.pairs import (
    BASE_GPA,
    REGION,
    SESSION_ID,
    TRANSFER_ID,
    Pair,
    connect,
    pages,
    usable_kernels,
)

import enclave_bridge
from enclave_bridge import (
    PAGE_SIZE,
    RECORD_SIZE,
    Bridge,
    BridgeStatusError,
    MacPurpose,
    Role,
    Suite,
    all_statuses,
    parse_header,
)


@pytest.fixture
def pair(backend: type[Bridge]) -> Pair:
    return connect(backend=backend)


def reason(excinfo: pytest.ExceptionInfo[BridgeStatusError]) -> str:
    return excinfo.value.reason


def test_statuses_when_listed_are_those_of_the_table() -> None:
    table = Path(__file__).parents[3] / "enclave_bridge/include/eb_status.def"
    rows = re.findall(r'^X\((\w+), (\d+), "(.*)"\)$', table.read_text(), re.MULTILINE)
    assert [(info.name, str(info.status), info.text) for info in all_statuses()] == rows


def test_error_when_raised_carries_the_table_s_words() -> None:
    error = BridgeStatusError(22)
    assert (error.status, error.name, error.reason) == (22, "EB_ERR_REPLAYED", "REPLAYED")
    assert str(error) == "EB_ERR_REPLAYED: the record was received before, or is too old to tell"
    assert pickle.loads(pickle.dumps(error)).reason == "REPLAYED"
    assert BridgeStatusError(999).reason == "UNKNOWN"


def test_info_when_asked_says_what_holds_the_secrets(backend: type[Bridge]) -> None:
    info = backend(max_sessions=1, max_handshakes=1).info
    assert info.memory in {"memfd_secret", "mlock"}
    assert info.libcrypto.startswith("OpenSSL ")
    assert (info.sessions_live, info.handshakes_live) == (0, 0)
    assert info.secret_bytes % mmap.PAGESIZE == 0
    assert info.gcm_kernel == usable_kernels()[0]


def test_kernel_when_named_is_the_one_used(backend: type[Bridge]) -> None:
    for name in usable_kernels():
        assert backend(max_sessions=1, max_handshakes=1, gcm_kernel=name).info.gcm_kernel == name


@pytest.mark.parametrize("name", ["fastest", "x" * 31, "x" * 32, "x" * 4096])
def test_kernel_when_unknown_is_refused(backend: type[Bridge], name: str) -> None:
    with pytest.raises(BridgeStatusError) as excinfo:
        backend(max_sessions=1, max_handshakes=1, gcm_kernel=name)
    assert reason(excinfo) == "ARGUMENT"


@pytest.mark.parametrize("counts", [(0, 1), (1, 0), (65537, 1), (1, 2**32 - 1)])
def test_bridge_when_its_slots_are_out_of_bounds_is_refused(backend: type[Bridge], counts: tuple[int, int]) -> None:
    with pytest.raises(BridgeStatusError) as excinfo:
        backend(max_sessions=counts[0], max_handshakes=counts[1])
    assert reason(excinfo) == "ARGUMENT"


def test_random_when_asked_gives_that_many_bytes(backend: type[Bridge]) -> None:
    bridge = backend(max_sessions=1, max_handshakes=1)
    assert [len(bridge.random(n)) for n in (33, 65536, 65537, 1 << 20)] == [33, 65536, 65537, 1 << 20]
    assert bridge.random(32) != bridge.random(32)
    assert bridge.random(0) == b""
    with pytest.raises(BridgeStatusError) as excinfo:
        bridge.random(-1)
    assert reason(excinfo) == "LENGTH"


@pytest.mark.parametrize("suite", list(Suite))
def test_pages_when_sealed_and_opened_arrive(suite: Suite, backend: type[Bridge]) -> None:
    pair = connect(suite, backend)
    sent, received = pair.transfers(40)
    target = bytearray(40 * PAGE_SIZE)
    received.target_memory(target)
    records, sealed = pair.client.seal(sent, region=REGION, first_gpa=BASE_GPA, plain=pages(40))
    assert isinstance(records, bytes)
    assert len(records) == 40 * RECORD_SIZE
    opened = pair.server.open(received, records)
    assert target == pages(40)
    assert (sealed.pages, sealed.bad_index, sealed.epoch, sealed.sequence) == (40, None, 0, 39)
    assert (opened.pages, opened.bad_index, opened.epoch, opened.sequence) == (40, None, 0, 39)
    assert sealed.nanoseconds > 0
    assert opened.nanoseconds > 0
    assert sent.pages == received.pages == 40
    pair.server.check_commit_mac(received, pair.client.commit_mac(sent))


def shared(data: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(data))
    memory.write(data)
    return memory


@pytest.mark.parametrize(
    "make",
    [
        bytes,
        bytearray,
        memoryview,
        shared,
        lambda data: array.array("Q", data),
        lambda data: memoryview(bytearray(data)).cast("B", (len(data) // 64, 64)),
        lambda data: memoryview(b"x" + data)[1:],
    ],
    ids=["bytes", "bytearray", "memoryview", "mmap", "array", "matrix", "slice"],
)
def test_seal_when_given_any_buffer_reads_it(pair: Pair, make) -> None:  # type: ignore[no-untyped-def]
    _, received = pair.transfers(2)
    target = mmap.mmap(-1, 2 * PAGE_SIZE)
    received.target_memory(target)
    records, _ = pair.client.seal(None, region=REGION, first_gpa=BASE_GPA, plain=make(pages(2)))
    pair.server.open(received, make(records))
    assert target[:] == pages(2)


def test_seal_into_when_given_a_writable_buffer_fills_it(pair: Pair) -> None:
    _, received = pair.transfers(2)
    received.target_memory(bytearray(2 * PAGE_SIZE))
    out = bytearray(2 * RECORD_SIZE + 1)
    result = pair.client.seal_into(
        None, region=REGION, first_gpa=BASE_GPA, plain=pages(2), out=memoryview(out)[: 2 * RECORD_SIZE]
    )
    assert result.pages == 2
    assert out[-1] == 0
    assert pair.server.open(received, memoryview(out)[: 2 * RECORD_SIZE]).pages == 2


def test_seal_when_given_out_fills_it_and_returns_the_records(pair: Pair) -> None:
    out = bytearray(RECORD_SIZE)
    records, _ = pair.client.seal(None, region=REGION, first_gpa=BASE_GPA, plain=pages(1), out=out)
    assert records == out


def test_seal_into_when_out_has_another_size_refuses(pair: Pair) -> None:
    for size, expected in ((RECORD_SIZE - 1, "BUFFER"), (RECORD_SIZE + 1, "LENGTH")):
        with pytest.raises(BridgeStatusError) as excinfo:
            pair.client.seal_into(None, region=REGION, first_gpa=0, plain=pages(1), out=bytearray(size))
        assert reason(excinfo) == expected


def test_out_when_not_writable_is_a_type_error(pair: Pair) -> None:
    with pytest.raises((TypeError, BufferError)):
        pair.client.seal_into(None, region=REGION, first_gpa=0, plain=pages(1), out=bytes(RECORD_SIZE))


@pytest.mark.parametrize(("plain", "expected"), [(b"", "LENGTH"), (b"x" * 4095, "LENGTH"), (b"x" * 4097, "LENGTH")])
def test_seal_when_plain_is_not_whole_pages_refuses(pair: Pair, plain: bytes, expected: str) -> None:
    with pytest.raises(BridgeStatusError) as excinfo:
        pair.client.seal(None, region=REGION, first_gpa=0, plain=plain)
    assert reason(excinfo) == expected


def test_integers_when_out_of_the_c_type_are_argument_errors(pair: Pair) -> None:
    for region, gpa in ((-1, 0), (2**32, 0), (0, -4096), (0, 2**64)):
        with pytest.raises(BridgeStatusError) as excinfo:
            pair.client.seal(None, region=region, first_gpa=gpa, plain=pages(1))
        assert reason(excinfo) == "ARGUMENT"


def test_open_when_a_record_is_bad_says_how_far_it_came(pair: Pair) -> None:
    sent, received = pair.transfers(4)
    target = bytearray(4 * PAGE_SIZE)
    received.target_memory(target)
    records, _ = pair.client.seal(sent, region=REGION, first_gpa=BASE_GPA, plain=pages(4))
    bad = bytearray(records)
    bad[2 * RECORD_SIZE + 100] ^= 1
    with pytest.raises(BridgeStatusError) as excinfo:
        pair.server.open(received, bad)
    assert reason(excinfo) == "TAMPERED"
    assert excinfo.value.result is not None
    assert (excinfo.value.result.pages, excinfo.value.result.bad_index) == (2, 2)
    assert target == pages(2) + bytes(2 * PAGE_SIZE)
    with pytest.raises(BridgeStatusError) as excinfo:
        pair.server.open(received, records)
    assert reason(excinfo) == "REPLAYED"
    stats = pair.server.stats()
    assert (stats.opened_pages, stats.tampered, stats.replayed, stats.closed) == (2, 1, 1, False)


def test_target_fd_when_pages_arrive_has_them(pair: Pair) -> None:
    sent, received = pair.transfers(3)
    fd = os.memfd_create("region")
    os.ftruncate(fd, 4 * PAGE_SIZE)
    received.target_fd(fd, PAGE_SIZE)
    records, _ = pair.client.seal(sent, region=REGION, first_gpa=BASE_GPA, plain=pages(3))
    pair.server.open(received, records)
    assert os.pread(fd, 4 * PAGE_SIZE, 0) == bytes(PAGE_SIZE) + pages(3)
    os.close(fd)
    with pytest.raises(BridgeStatusError) as excinfo:
        sent.target_fd(-1)
    assert reason(excinfo) == "TARGET"


@pytest.fixture
def memory_file() -> Iterator[int]:
    fd = os.memfd_create("source")
    os.write(fd, pages(70) + b"tail")
    yield fd
    os.close(fd)


@pytest.mark.parametrize("count", [1, 16, 71])
def test_seal_from_when_opened_is_what_the_file_has(pair: Pair, memory_file: int, count: int) -> None:
    sent, received = pair.transfers(count)
    target = bytearray(count * PAGE_SIZE)
    received.target_memory(target)
    source = pair.client_bridge.source(memory_file, length=70 * PAGE_SIZE + 4)
    records, result = pair.client.seal_from(
        sent, region=REGION, first_gpa=BASE_GPA, source=source, offset=0, length=count * PAGE_SIZE
    )
    assert (len(records), result.pages, result.sequence) == (count * RECORD_SIZE, count, count - 1)
    pair.server.open(received, records)
    assert target == (pages(70) + b"tail" + bytes(PAGE_SIZE - 4))[: count * PAGE_SIZE]


def test_seal_from_when_the_file_was_cut_raises_its_reason(pair: Pair, memory_file: int) -> None:
    source = pair.client_bridge.source(memory_file, length=70 * PAGE_SIZE)
    os.ftruncate(memory_file, 30 * PAGE_SIZE)
    with pytest.raises(BridgeStatusError) as excinfo:
        pair.client.seal_from(
            None, region=REGION, first_gpa=BASE_GPA, source=source, offset=PAGE_SIZE, length=69 * PAGE_SIZE
        )
    assert reason(excinfo) == "SOURCE_UNREADABLE"


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (0, -1), (0, 100), (0, 72 * PAGE_SIZE), (70 * PAGE_SIZE + 4, PAGE_SIZE), (0, 2**50)]
)
def test_seal_from_when_not_pages_of_the_source_is_refused(
    pair: Pair, memory_file: int, offset: int, length: int
) -> None:
    source = pair.client_bridge.source(memory_file, length=70 * PAGE_SIZE + 4)
    with pytest.raises(BridgeStatusError) as excinfo:
        pair.client.seal_from(None, region=REGION, first_gpa=BASE_GPA, source=source, offset=offset, length=length)
    assert reason(excinfo) == "LENGTH"


def test_source_when_it_is_no_file_or_shorter_is_refused(pair: Pair, memory_file: int) -> None:
    ends = os.pipe()
    for fd, length in ((-1, 1), (2**40, 1), (ends[0], 1), (memory_file, 71 * PAGE_SIZE)):
        with pytest.raises(BridgeStatusError) as excinfo:
            pair.client_bridge.source(fd, length=length)
        assert reason(excinfo) == "SOURCE_UNREADABLE"
    for end in ends:
        os.close(end)


def test_seal_from_when_the_source_was_closed_is_refused(pair: Pair, memory_file: int) -> None:
    source = pair.client_bridge.source(memory_file, length=PAGE_SIZE)
    source.close()
    with pytest.raises(BridgeStatusError) as excinfo:
        pair.client.seal_from(None, region=REGION, first_gpa=BASE_GPA, source=source, offset=0, length=PAGE_SIZE)
    assert reason(excinfo) == "STATE"


@pytest.mark.parametrize("name", ["mmap", "", "io_urin"])
def test_bridge_when_the_file_io_is_unknown_is_refused(name: str) -> None:
    with pytest.raises(BridgeStatusError) as excinfo:
        Bridge(max_sessions=1, max_handshakes=1, file_io=name)
    assert reason(excinfo) == "ARGUMENT"


def test_bridge_when_told_to_use_pread_says_so() -> None:
    assert Bridge(max_sessions=1, max_handshakes=1, file_io="pread").info.file_io == "pread"


def test_target_memory_when_given_is_kept_alive(pair: Pair) -> None:
    _, received = pair.transfers(1)
    target = bytearray(PAGE_SIZE)
    received.target_memory(target)
    with pytest.raises(BufferError):
        target.extend(b"x")  # exported while the transfer lives
    received.close()
    gc.collect()
    target.extend(b"x")


def test_forget_when_called_drops_pages(pair: Pair) -> None:
    sent, _ = pair.transfers(4)
    pair.client.seal(sent, region=REGION, first_gpa=BASE_GPA, plain=pages(4))
    sent.forget(BASE_GPA, 3)
    assert sent.pages == 1


def test_control_mac_when_the_message_differs_is_refused(pair: Pair) -> None:
    mac = pair.client.mac(MacPurpose.RECEIPT, b"17")
    pair.server.check_mac(MacPurpose.RECEIPT, b"17", mac)
    for purpose, message in ((MacPurpose.RECEIPT, b"18"), (MacPurpose.TRANSFER, b"17")):
        with pytest.raises(BridgeStatusError) as excinfo:
            pair.server.check_mac(purpose, message, mac)
        assert reason(excinfo) == "MAC"


def test_header_when_parsed_has_the_public_fields(pair: Pair) -> None:
    pair.client.rekey()
    records, _ = pair.client.seal(None, region=REGION, first_gpa=BASE_GPA, plain=pages(2))
    header = parse_header(memoryview(records)[RECORD_SIZE:])
    assert (header.session_id, header.epoch, header.sequence) == (SESSION_ID, 1, 1)
    assert (header.region, header.gpa, header.flags, header.reserved) == (REGION, BASE_GPA + PAGE_SIZE, 0, 0)
    with pytest.raises(BridgeStatusError) as excinfo:
        parse_header(records)
    assert reason(excinfo) == "LENGTH"


def test_ids_when_of_another_length_are_refused(pair: Pair) -> None:
    with pytest.raises(BridgeStatusError) as excinfo:
        pair.client_bridge.transfer(TRANSFER_ID[1:], region=1, base_gpa=0, pages=1)
    assert reason(excinfo) == "LENGTH"
    with pytest.raises(BridgeStatusError) as excinfo:
        pair.client_bridge.handshake(Role.CLIENT, [])
    assert reason(excinfo) == "ARGUMENT"


def test_handles_when_closed_refuse_later_calls(pair: Pair, backend: type[Bridge]) -> None:
    sent, _ = pair.transfers(1)
    with pair.client as session:
        session.stats()
    pair.client.close()
    with pytest.raises(BridgeStatusError) as excinfo:
        pair.client.seal(None, region=REGION, first_gpa=0, plain=pages(1))
    assert reason(excinfo) == "SESSION_CLOSED"
    sent.close()
    with pytest.raises(BridgeStatusError) as excinfo:
        _ = sent.pages
    assert reason(excinfo) == "STATE"
    with backend(max_sessions=1, max_handshakes=1) as bridge:
        assert bridge.info.sessions_live == 0
    with pytest.raises(BridgeStatusError):
        _ = bridge.info


def test_session_when_its_bridge_is_closed_first_lives_on(pair: Pair) -> None:
    pair.client_bridge.close()
    gc.collect()
    assert pair.client.seal(None, region=REGION, first_gpa=0, plain=pages(1))[1].pages == 1


def test_slots_when_handles_are_dropped_are_free_again(backend: type[Bridge]) -> None:
    bridge = backend(max_sessions=1, max_handshakes=2)
    kept = [bridge.handshake(Role.CLIENT, [Suite.P256_SHA256_AES128GCM]) for _ in range(2)]
    with pytest.raises(BridgeStatusError) as excinfo:
        bridge.handshake(Role.CLIENT, [Suite.P256_SHA256_AES128GCM])
    assert reason(excinfo) == "LIMIT"
    del kept
    gc.collect()
    assert bridge.info.handshakes_live == 0


def test_close_when_other_threads_are_in_calls_is_safe(pair: Pair) -> None:
    sent, received = pair.transfers(64)
    received.target_memory(bytearray(64 * PAGE_SIZE))
    data, started, outcomes = pages(64), threading.Barrier(4), []

    def work() -> None:
        started.wait()
        try:
            while True:
                records, _ = pair.client.seal(sent, region=REGION, first_gpa=BASE_GPA, plain=data)
                pair.server.open(received, records)
        except BridgeStatusError as error:
            outcomes.append(error.reason)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    while pair.server.stats().opened_pages < 200:
        pass
    for handle in (received, pair.client, sent, pair.server, pair.client_bridge, pair.server_bridge):
        handle.close()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 3
    # A thread that slept between its two calls comes with numbers the replay window has left behind.
    assert set(outcomes) <= {"SESSION_CLOSED", "STATE", "REPLAYED"}


FORKED = """
import os
from enclave_bridge import {backend} as Bridge, BridgeStatusError, Role, Suite
bridge = Bridge(max_sessions=1, max_handshakes=1)
handshake = bridge.handshake(Role.CLIENT, [Suite.P256_SHA256_AES128GCM])
child = os.fork()
if child == 0:
    reasons = []
    for call in (lambda: bridge.info, lambda: bridge.random(1), lambda: handshake.absorb(b"x")):
        try:
            call()
        except BridgeStatusError as error:
            reasons.append(error.reason)
    handshake.close()
    bridge.close()
    Bridge(max_sessions=1, max_handshakes=1).info
    os._exit(0 if reasons == ["FORKED"] * 3 else 1)
assert os.waitpid(child, 0)[1] == 0
handshake.absorb(b"the parent goes on")
"""


def test_calls_when_made_in_a_forked_child_fail(backend: type[Bridge]) -> None:
    subprocess.run([sys.executable, "-c", FORKED.replace("{backend}", backend.__name__)], check=True)


def test_package_when_imported_needs_nothing_of_the_service() -> None:
    code = "import sys, enclave_bridge; sys.exit(any(name.split('.')[0] == 'pagegate' for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(enclave_bridge.__all__) <= set(dir(enclave_bridge))


@pytest.mark.parametrize("call", ["seal", "seal_into", "open"])
def test_buffer_when_a_call_fails_is_not_held_by_the_traceback(call: str) -> None:
    """Before Python 3.13 the garbage collector clears a memoryview in a cycle even while it is exported: a crash."""
    pair = connect()
    _, received = pair.transfers(1)
    pair.client.close()
    pair.server.close()
    view = memoryview(bytearray(RECORD_SIZE if call == "open" else PAGE_SIZE))
    calls = {
        "seal": lambda: pair.client.seal(None, region=REGION, first_gpa=BASE_GPA, plain=view),
        "seal_into": lambda: pair.client.seal_into(
            None, region=REGION, first_gpa=BASE_GPA, plain=view, out=bytearray(RECORD_SIZE)
        ),
        "open": lambda: pair.server.open(received, view),
    }
    with pytest.raises(BridgeStatusError) as caught:
        calls[call]()
    view.release()  # raises BufferError where it is still exported
    assert caught.tb is not None
