"""Streams that break off, dawdle, or say the wrong thing; the server goes on serving."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from pagegate.client import Client
from pagegate.rpc.events import ServerEvent
from pagegate.server import Server
from pagegate.v1 import attestation_pb2 as pb

OpenStream = Callable[[Server], Any]


class Events:
    """An observer one can wait on."""

    def __init__(self) -> None:
        self.seen: list[ServerEvent] = []
        self._changed = threading.Condition()

    def __call__(self, event: ServerEvent) -> None:
        with self._changed:
            self.seen.append(event)
            self._changed.notify_all()

    def wait_for(self, kind: str) -> ServerEvent:
        """The first event of a kind."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(e.kind == kind for e in self.seen), timeout=20)
            return next(e for e in self.seen if e.kind == kind)


def test_attest_when_done_by_hand_then_finished(server: Server, stream: OpenStream) -> None:
    one = stream(server)
    one.hello()
    one.prove()
    finished = one.finished()
    established = one.handshake.establish(finished.parameters, finished.server_finished)
    established.session.close()
    assert server.sessions.get(established.session_id)


@pytest.mark.parametrize("steps", [[], ["hello"]], ids=["before the hello", "before the proof"])
def test_attest_when_the_client_ends_early_then_truncated_and_no_session(
    server: Server, stream: OpenStream, steps: list[str]
) -> None:
    one = stream(server)
    for step in steps:
        getattr(one, step)()
    one.end()
    assert one.refusal().reason == "HANDSHAKE_TRUNCATED"
    assert len(server.sessions) == 0


@pytest.mark.parametrize("with_hello", [False, True])
def test_attest_when_the_client_vanishes_then_its_slot_is_free_again(
    serve: Callable[..., Server], connect: Callable[..., Client], stream: OpenStream, with_hello: bool
) -> None:
    server = serve(max_handshakes=1)
    one = stream(server)
    if with_hello:
        one.hello()
        one.answer()
    else:
        one.connected()
    one.cancel()
    assert _attest_soon(connect(server))


def test_attest_when_the_client_ends_early_then_the_refusal_is_recorded(
    serve: Callable[..., Server], stream: OpenStream
) -> None:
    events = Events()
    one = stream(serve(observer=events))
    one.hello()
    one.end()
    assert events.wait_for("refusal").details["reason"] == "HANDSHAKE_TRUNCATED"


def _attest_soon(client: Client) -> object:
    """Attests; a slot may take a moment to become free."""
    for _ in range(200):
        try:
            return client.attest()
        except Exception as error:
            if getattr(error, "reason", "") != "TOO_MANY_HANDSHAKES":
                raise
            time.sleep(0.02)
    raise AssertionError("no slot became free")


@pytest.mark.parametrize("with_hello", [False, True], ids=["says nothing", "sends no proof"])
def test_attest_when_the_client_dawdles_then_handshake_timeout_and_the_server_serves_on(
    serve: Callable[..., Server], connect: Callable[..., Client], stream: OpenStream, with_hello: bool
) -> None:
    server = serve(handshake_timeout_s=0.3, max_handshakes=1)
    one = stream(server)
    if with_hello:
        one.hello()
    failure = one.failure()
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert _info(failure).reason == "HANDSHAKE_TIMEOUT"
    assert server.bridge.info.handshakes_live == 0
    assert connect(server).attest().peer.accepted


def _info(failure: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    status = rpc_status.from_call(failure)
    assert status is not None
    return error_details_pb2.ErrorInfo.FromString(status.details[0].value)


def test_attest_when_the_proof_comes_first_then_out_of_order(server: Server, stream: OpenStream) -> None:
    one = stream(server)
    one.send(client_evidence=pb.ClientEvidence(evidence=b"e", client_finished=b"f"))
    assert one.refusal().reason == "OUT_OF_ORDER"


def test_attest_when_the_hello_comes_twice_then_out_of_order(server: Server, stream: OpenStream) -> None:
    one = stream(server)
    one.hello()
    one.hello()
    assert one.refusal().reason == "OUT_OF_ORDER"


def test_attest_when_a_step_is_empty_then_out_of_order(server: Server, stream: OpenStream) -> None:
    one = stream(server)
    one.send()
    assert one.refusal().reason == "OUT_OF_ORDER"


@pytest.mark.parametrize("hello", [b"", b"\xff" * 99, bytes(1 << 17)], ids=["empty", "garbage", "oversize"])
def test_attest_when_the_hello_is_nonsense_then_malformed(server: Server, stream: OpenStream, hello: bytes) -> None:
    one = stream(server)
    one.send(client_hello=hello)
    assert one.refusal().reason == "MALFORMED_MESSAGE"


def test_attest_when_a_message_is_larger_than_grpc_takes_then_refused_and_the_server_serves_on(
    server: Server, connect: Callable[..., Client], stream: OpenStream
) -> None:
    one = stream(server)
    one.send(client_hello=bytes(4 << 20))
    assert one.failure().code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED)
    assert connect(server).attest().peer.accepted


def test_attest_when_evidence_is_empty_then_evidence_missing(server: Server, stream: OpenStream) -> None:
    one = stream(server)
    one.hello()
    one.send(client_evidence=pb.ClientEvidence(client_finished=bytes(48)))
    failure = one.failure()
    assert failure.code() is grpc.StatusCode.UNAUTHENTICATED
    assert (_info(failure).domain, _info(failure).reason) == ("pagegate", "EVIDENCE_MISSING")


def test_attest_when_the_client_is_not_believed_then_the_wire_has_no_reference_value(
    serve: Callable[..., Server], connect: Callable[..., Client], platform_for: Callable[..., object]
) -> None:
    events = Events()
    server = serve(observer=events)
    client = connect(server, platform=platform_for("stranger"))
    with pytest.raises(Exception, match="EVIDENCE_REJECTED") as refused:
        client.attest()
    failure = refused.value.__cause__
    assert isinstance(failure, grpc.RpcError)
    assert failure.code() is grpc.StatusCode.PERMISSION_DENIED
    assert dict(_info(failure).metadata) == {"checks": "SNP_MEASUREMENT"}
    known = platform_for.measurement("client").hex().encode()  # type: ignore[attr-defined]
    assert known not in rpc_status.from_call(failure).SerializeToString()
    # The operator does learn it.
    assert known.decode() in str(events.wait_for("refusal").details["failures"])
    assert len(server.sessions) == 0


def test_attest_when_the_server_is_not_believed_then_the_client_refuses_and_the_server_has_no_session(
    serve: Callable[..., Server], connect: Callable[..., Client], platform_for: Callable[..., object]
) -> None:
    server = serve(platform=platform_for("stranger"))
    with pytest.raises(Exception, match="EVIDENCE_REJECTED"):
        connect(server).attest()
    assert len(server.sessions) == 0


def test_attest_when_a_region_does_not_exist_then_region_unknown(
    server: Server, connect: Callable[..., Client]
) -> None:
    with pytest.raises(Exception, match="REGION_UNKNOWN"):
        connect(server, regions={"nowhere": "read"}).attest()
    assert len(server.sessions) == 0


def test_attest_when_granted_then_the_observer_learns_who_and_what(
    serve: Callable[..., Server], connect: Callable[..., Client], platform_for: Callable[..., object]
) -> None:
    events = Events()
    connect(serve(observer=events)).attest()
    grant = events.wait_for("grant")
    assert grant.subject == "client"
    assert grant.details["measurement"] == platform_for.measurement("client").hex()  # type: ignore[attr-defined]
    assert grant.details["simulated"] is True
    assert grant.details["regions"] == "book:read-write, disk:read-write"


# ---- bounds --------------------------------------------------------------------------


def test_attest_when_handshake_slots_are_taken_then_too_many_handshakes_and_when_to_retry(
    serve: Callable[..., Server], stream: OpenStream
) -> None:
    server = serve(max_handshakes=1)
    holder = stream(server)
    holder.hello()
    holder.answer()
    late = stream(server)
    late.hello()
    failure = late.failure()
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert _info(failure).reason == "TOO_MANY_HANDSHAKES"
    status = rpc_status.from_call(failure)
    assert status is not None
    assert error_details_pb2.RetryInfo.FromString(status.details[1].value).retry_delay.ToNanoseconds() > 0


def test_attest_when_all_sessions_are_open_then_too_many_sessions_and_when_to_retry(
    serve: Callable[..., Server], connect: Callable[..., Client]
) -> None:
    server = serve(max_sessions=1)
    connect(server).attest()
    with pytest.raises(Exception, match="TOO_MANY_SESSIONS") as refused:
        connect(server).attest()
    assert refused.value.retry_after > 0  # type: ignore[attr-defined]
    assert len(server.sessions) == 1


def test_attest_when_two_race_for_the_last_session_then_one_gets_it(
    serve: Callable[..., Server], stream: OpenStream
) -> None:
    """Both pass the early check; the table decides at the end."""
    server = serve(max_sessions=1)
    first, second = stream(server), stream(server)
    for one in (first, second):
        one.hello()
    first.prove()
    assert first.finished().parameters
    second.prove()
    assert second.refusal().reason == "TOO_MANY_SESSIONS"
    assert len(server.sessions) == 1
