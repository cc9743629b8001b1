"""Every limit of a server over real sockets: what is over it ends with a stable reason and RetryInfo."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from pagegate.client import Client
from pagegate.errors import TransferError
from pagegate.rpc.admission import AUXILIARY_CALLS, AdmissionLimits
from pagegate.rpc.errors import from_rpc_error
from pagegate.rpc.events import ServerEvent
from pagegate.rpc.pace import PaceLimits
from pagegate.rpc.tls import ServerTls
from pagegate.server import Server
from pagegate.transfer import macs
from pagegate.v1 import transfer_pb2 as pb
from support.certificates import self_signed
from support.pages import SERVICE, HandStream, details

Serve = Callable[..., Server]
Connect = Callable[..., Client]
IMPATIENT = AdmissionLimits(pace=PaceLimits(wait_s=2.0, bytes_per_s=1 << 20))


@pytest.fixture
def silent() -> Iterator[Callable[[], Iterator[Any]]]:
    """silent(): requests that never come; they end with the test."""
    over = threading.Event()

    def requests() -> Iterator[Any]:
        over.wait(60)
        yield from ()

    yield requests
    over.set()


def opened(call: grpc.Call) -> grpc.Call:
    """The call, ended."""
    with pytest.raises(grpc.RpcError):
        list(call)
    return call


def assert_limit(call: grpc.Call, code: grpc.StatusCode, reason: str) -> None:
    assert call.code() is code
    found = details(call)
    assert (found["ErrorInfo"].domain, found["ErrorInfo"].reason) == ("pagegate", reason)
    delay = found["RetryInfo"].retry_delay
    assert delay.seconds + delay.nanos / 1e9 > 0


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- slow peers -------------------------------------------------------------------------


def test_stream_when_opened_and_nothing_is_sent_then_slow_peer(
    serve: Serve, silent: Callable[[], Iterator[Any]]
) -> None:
    with grpc.insecure_channel(serve(admission=IMPATIENT).address) as channel:
        call = opened(channel.stream_stream(SERVICE + "TransferPages")(silent(), timeout=30))
        assert_limit(call, grpc.StatusCode.DEADLINE_EXCEEDED, "SLOW_PEER")


def test_stream_when_it_stalls_after_begin_then_slow_peer_and_the_region_is_free(
    serve: Serve, connect: Connect
) -> None:
    server = serve(admission=IMPATIENT, stale_transfer_s=0.0)
    client = connect(server)
    with HandStream(client, server.address) as stream:
        stream.begin()
        refused = stream.refusal()
        assert_limit(stream.call, grpc.StatusCode.DEADLINE_EXCEEDED, "SLOW_PEER")
    assert refused.retry_after
    assert client.send("book", b"p" * 4096).generation == 1


def test_stream_when_it_trickles_then_slow_peer(serve: Serve, connect: Connect) -> None:
    pace = PaceLimits(wait_s=0.6, bytes_per_s=1 << 20)
    server = serve(admission=AdmissionLimits(pace=pace))
    with HandStream(connect(server), server.address, pages=200) as stream:
        stream.begin()
        ended = threading.Event()
        stream.call.add_callback(ended.set)
        for _ in range(100):
            stream.batch()
            if ended.wait(0.2):
                break
        assert stream.refusal().reason == "SLOW_PEER"


def test_stream_when_it_keeps_the_pace_then_outlives_the_wait(serve: Serve, connect: Connect) -> None:
    pace = PaceLimits(wait_s=3.0, bytes_per_s=4096)
    server = serve(admission=AdmissionLimits(pace=pace))
    with HandStream(connect(server), server.address, pages=10) as stream:
        stream.begin()
        for _ in range(10):
            time.sleep(0.35)
            stream.batch()
        stream.commit()
        assert [a for a in stream.answers() if a.WhichOneof("step") == "committed"]


def test_unary_call_when_its_message_does_not_come_then_slow_peer(
    serve: Serve, silent: Callable[[], Iterator[Any]]
) -> None:
    with grpc.insecure_channel(serve(admission=IMPATIENT).address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.stream_unary(SERVICE + "TransferPage")(silent(), timeout=30)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    refused = from_rpc_error(caught.value)
    assert (refused.reason, refused.retry_after) == ("SLOW_PEER", 1.0)


def test_read_when_the_reader_does_not_read_then_slow_peer_and_nothing_stays_in_flight(
    serve: Serve, connect: Connect
) -> None:
    from pagegate.transfer.region import RegionSpec

    seen = []
    server = serve(admission=IMPATIENT, regions=[RegionSpec("book", 1 << 32, 4096)], observer=seen.append)
    client = connect(server, regions={"book": "read"})
    call = reading(client)
    next(call)
    wait_until(lambda: any(e.details.get("reason") == "SLOW_PEER" for e in seen))
    opened(call)
    refused = from_rpc_error(call)
    assert (call.code(), refused.reason, refused.retry_after) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "SLOW_PEER",
        1.0,
    )
    wait_until(lambda: server.gate.flight.used == 0 and server.gate.live == 0)


def reading(client: Client) -> Any:
    """A GetRegion call of the whole of `book` that the test reads, or does not."""
    import enclave_bridge as eb

    granted, session = client.session.regions["book"], client.session.session
    mac = session.mac(eb.MacPurpose.TRANSFER, macs.get(bytes(16), granted.number, granted.base_gpa, granted.pages))
    return client._get(
        pb.GetRegionRequest(
            session_id=client.session.session_id,
            region=granted.number,
            first_gpa=granted.base_gpa,
            pages=granted.pages,
            transfer_id=bytes(16),
            mac=mac,
        ),
        timeout=60,
    )


def test_handshake_when_it_stalls_then_timeout_with_retry_info(
    serve: Serve, silent: Callable[[], Iterator[Any]]
) -> None:
    with grpc.insecure_channel(serve(handshake_timeout_s=0.4).address) as channel:
        call = opened(channel.stream_stream("/pagegate.v1.Attestation/Attest")(silent(), timeout=30))
        assert_limit(call, grpc.StatusCode.DEADLINE_EXCEEDED, "HANDSHAKE_TIMEOUT")


# ---- how many ---------------------------------------------------------------------------


def test_calls_when_over_the_limit_then_resource_exhausted(serve: Serve, silent: Callable[[], Iterator[Any]]) -> None:
    server = serve(admission=AdmissionLimits(max_streams=2))
    with grpc.insecure_channel(server.address) as channel:
        held = [channel.stream_stream(SERVICE + "TransferPages")(silent(), timeout=30) for _ in range(2)]
        wait_until(lambda: server.gate.live == 2)
        call = opened(channel.stream_stream(SERVICE + "TransferPages")(iter(()), timeout=30))
        assert_limit(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
        for one in held:
            one.cancel()
        wait_until(lambda: server.gate.live == 0)


def test_handshakes_when_over_the_limit_then_resource_exhausted(
    serve: Serve, silent: Callable[[], Iterator[Any]]
) -> None:
    server = serve(max_handshakes=1)
    with grpc.insecure_channel(server.address) as channel:
        held = channel.stream_stream("/pagegate.v1.Attestation/Attest")(silent(), timeout=30)
        wait_until(lambda: server.attestation.live == 1)
        call = opened(channel.stream_stream("/pagegate.v1.Attestation/Attest")(iter(()), timeout=30))
        assert_limit(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_HANDSHAKES")
        held.cancel()


def test_sessions_when_over_the_limit_then_resource_exhausted(serve: Serve, connect: Connect) -> None:
    server = serve(max_sessions=1)
    connect(server).attest()
    with grpc.insecure_channel(server.address) as channel:
        call = opened(channel.stream_stream("/pagegate.v1.Attestation/Attest")(iter(()), timeout=30))
        assert_limit(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SESSIONS")


def test_client_when_the_limit_frees_in_time_then_attests_without_the_caller_noticing(
    serve: Serve, connect: Connect, silent: Callable[[], Iterator[Any]]
) -> None:
    server = serve(max_handshakes=1)
    with grpc.insecure_channel(server.address) as channel:
        held = channel.stream_stream("/pagegate.v1.Attestation/Attest")(silent(), timeout=30)
        wait_until(lambda: server.attestation.live == 1)
        threading.Timer(0.3, held.cancel).start()
        assert connect(server).attest().session_id


def test_bytes_when_over_the_limit_then_resource_exhausted_and_the_client_goes_on_later(
    serve: Serve, connect: Connect
) -> None:
    from pagegate.transfer.region import RegionSpec

    limit = 2 * 256 * 4160 + 4096
    regions = [RegionSpec("book", 1 << 32, 8192), RegionSpec("disk", 1 << 33, 256)]
    refused = threading.Semaphore(0)

    def observe(event: ServerEvent) -> None:
        if event.details.get("reason") == "TOO_MANY_BYTES_IN_FLIGHT":
            refused.release()

    server = serve(admission=AdmissionLimits(max_bytes_in_flight=limit), regions=regions, observer=observe)
    client = connect(server)
    readers = [reading(client) for _ in range(2)]
    for call in readers:
        next(call)
    wait_until(lambda: server.gate.flight.used >= 2 * 256 * 4160)
    writer = connect(server, max_resumes=0)
    with HandStream(writer, server.address, region="disk") as stream:
        stream.begin()
        stream.batch(8)
        assert stream.refusal().reason == "TOO_MANY_BYTES_IN_FLIGHT"
        assert_limit(stream.call, grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_BYTES_IN_FLIGHT")

    def make_room() -> None:
        assert all(refused.acquire(timeout=30) for _ in range(2))
        for call in readers:
            call.cancel()

    making = threading.Thread(target=make_room)
    making.start()
    sent = connect(server).send("disk", b"q" * 4096 * 8)
    making.join()
    assert sent.generation == 1
    assert sent.resumed >= 1
    wait_until(lambda: server.gate.flight.used == 0)


# ---- what is not the gate's own ---------------------------------------------------------


def test_reflection_when_held_open_by_many_then_bounded_and_transfers_go_on(
    serve: Serve, connect: Connect, silent: Callable[[], Iterator[Any]]
) -> None:
    server = serve(admission=AdmissionLimits(max_streams=2))
    with grpc.insecure_channel(server.address) as channel:
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        held = [reflect(silent(), timeout=30) for _ in range(AUXILIARY_CALLS)]
        one = reflection_pb2.ServerReflectionRequest(list_services="")
        deadline = time.monotonic() + 20
        while True:
            call = reflect(iter((one,)), timeout=30)
            try:
                list(call)
            except grpc.RpcError:
                break
            assert time.monotonic() < deadline
        assert_limit(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
        assert connect(server).send("book", b"p" * 4096).generation == 1
        for call in held:
            call.cancel()


def test_health_watch_when_the_server_drains_then_told(serve: Serve) -> None:
    server = serve()
    with grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.drain()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


# ---- connections ------------------------------------------------------------------------


def closed_by_peer(connection: socket.socket) -> bool:
    connection.settimeout(20)
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return True


def test_connection_when_it_does_not_answer_pings_then_closed(serve: Serve) -> None:
    server = serve(keepalive_s=1.0, keepalive_timeout_s=1.0)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        assert closed_by_peer(connection)


def test_connection_when_its_tls_handshake_stalls_then_closed(serve: Serve) -> None:
    certificate, key = self_signed()
    server = serve(tls=ServerTls(certificate, key), keepalive_timeout_s=1.0)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        assert closed_by_peer(connection)


# ---- draining ---------------------------------------------------------------------------


def test_calls_when_draining_then_unavailable_with_retry_info(serve: Serve) -> None:
    server = serve()
    with grpc.insecure_channel(server.address) as channel:
        grpc.channel_ready_future(channel).result(10)
        server.drain()
        for method in (SERVICE + "TransferPages", "/pagegate.v1.Attestation/Attest", SERVICE + "GetRegion"):
            call = opened(channel.stream_stream(method)(iter(()), timeout=30))
            assert_limit(call, grpc.StatusCode.UNAVAILABLE, "DRAINING")


def test_stream_when_its_time_to_finish_is_over_then_acknowledged_and_told_to_go_elsewhere(
    serve: Serve, connect: Connect
) -> None:
    server = serve()
    with HandStream(connect(server), server.address) as stream:
        stream.begin()
        stream.batch(2)
        wait_until(lambda: server.staged().get(1) == (2, 8))
        server.drain(finish_s=0.0)
        answers = list(stream.answers())
        assert [a.ack.batches for a in answers] == [1]
        assert_limit(stream.call, grpc.StatusCode.UNAVAILABLE, "DRAINING")


def test_stream_when_draining_then_its_commit_is_still_taken(serve: Serve, connect: Connect) -> None:
    server = serve()
    with HandStream(connect(server), server.address, pages=2) as stream:
        stream.begin()
        stream.batch(2)
        wait_until(lambda: server.staged().get(1) == (2, 2))
        # The commit is on its way when the server begins to drain.
        stream.commit()
        server.drain(finish_s=5.0)
        assert [a.WhichOneof("step") for a in stream.answers()] == ["committed"]


def test_stop_when_a_stream_ends_within_the_grace_then_true(serve: Serve, connect: Connect) -> None:
    server = serve()
    with HandStream(connect(server), server.address, pages=2) as stream:
        stream.begin()
        ended: list[bool] = []
        stopping = threading.Thread(target=lambda: ended.append(server.stop(20.0)))
        stopping.start()
        wait_until(lambda: server.gate.draining)
        stream.batch(2)
        stream.commit()
        assert [a.WhichOneof("step") for a in stream.answers()][-1] == "committed"
        stopping.join(20)
    assert ended == [True]


def test_stop_when_hurried_then_does_not_wait(serve: Serve, connect: Connect) -> None:
    server = serve()
    with HandStream(connect(server), server.address, pages=2) as stream:
        stream.begin()
        hurry, ended = threading.Event(), []
        stopping = threading.Thread(target=lambda: ended.append(server.stop(600.0, hurry=hurry)))
        stopping.start()
        wait_until(lambda: server.gate.draining)
        hurry.set()
        stopping.join(20)
    assert ended == [False]


def test_client_when_the_server_drains_then_resumes_on_the_next_one(serve: Serve, connect: Connect) -> None:
    first = serve()
    address = first.address
    client = connect(first)
    client.attest()
    first.drain()
    replaced: list[Server] = []

    def replace() -> None:
        first.stop(0.5)
        replaced.append(serve(listen=address))

    timer = threading.Timer(0.5, replace)
    timer.start()
    assert client.send("book", b"r" * 4096 * 3).generation == 1
    timer.join()
    assert next(iter(replaced[0].regions)).generation == 1


def test_client_when_told_to_come_again_too_often_gives_up(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server, max_resumes=1)
    client.attest()
    server.drain()
    with pytest.raises(TransferError) as refused:
        client.send("book", b"s" * 4096)
    assert refused.value.reason == "DRAINING"


def test_read_when_the_time_to_finish_is_over_then_told_to_go_elsewhere(serve: Serve, connect: Connect) -> None:
    from pagegate.transfer.region import RegionSpec

    server = serve(regions=[RegionSpec("book", 1 << 32, 8192)])
    call = reading(connect(server, regions={"book": "read"}))
    next(call)
    server.drain(finish_s=0.0)
    assert_limit(opened(call), grpc.StatusCode.UNAVAILABLE, "DRAINING")


def test_probe_port_when_watched_by_many_then_still_answers_checks(serve: Serve, free_port: int) -> None:
    serve(health_listen=f"127.0.0.1:{free_port}")
    with grpc.insecure_channel(f"127.0.0.1:{free_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        held = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(8)]
        for watch in held:
            next(watch)
        further = opened(stub.Watch(health_pb2.HealthCheckRequest(), timeout=60))
        assert_limit(further, grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == 1
        for watch in held:
            watch.cancel()


def test_handshake_when_the_peer_takes_no_answer_then_slow_peer(serve: Serve, connect: Connect) -> None:
    """A peer with an HTTP/2 window of zero: the server's evidence cannot leave."""
    seen: list[Any] = []
    server = serve(handshake_timeout_s=600.0, observer=seen.append)
    hello = honest_hello(connect(server))
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        connection.sendall(frame(4, 0, 0, bytes([0, 4, 0, 0, 0, 0])))  # SETTINGS: INITIAL_WINDOW_SIZE 0
        connection.sendall(frame(1, 4, 1, request_headers("/pagegate.v1.Attestation/Attest")))
        connection.sendall(frame(0, 0, 1, b"\0" + len(hello).to_bytes(4, "big") + hello))
        wait_until(lambda: any(event.details.get("reason") == "SLOW_PEER" for event in seen))
        wait_until(lambda: server.attestation.live == 0)


def honest_hello(client: Client) -> bytes:
    from pagegate.evidence.model import AccessMode
    from pagegate.handshake.client import ClientHandshake
    from pagegate.v1 import attestation_pb2 as att

    handshake = ClientHandshake(client._bridge, client._platform, client._appraiser, {"book": AccessMode.READ})
    try:
        return att.AttestRequest(client_hello=handshake.hello()).SerializeToString()
    finally:
        handshake.close()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, 4.1."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def request_headers(path: str) -> bytes:
    """Literal header fields without indexing, RFC 7541, 6.2.2."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "pagegate.test",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    texts = (text.encode() for pair in fields.items() for text in pair)
    coded = [bytes([len(text)]) + text for text in texts]
    return b"".join(b"\0" + name + value for name, value in zip(coded[::2], coded[1::2], strict=True))
