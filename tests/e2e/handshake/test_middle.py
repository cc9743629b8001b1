"""A machine in the middle: a gRPC server of its own that talks to the real one and changes what it likes."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

import enclave_bridge as eb
from pagegate.client import Client
from pagegate.errors import HandshakeError
from pagegate.server import Server
from pagegate.v1 import attestation_pb2 as pb
from pagegate.v1 import attestation_pb2_grpc as pb_grpc
from support.handshake import edit

Change = Callable[["Middle"], None]


def _nothing(_: object) -> None:
    """Passes a message on as it is."""


class Middle(pb_grpc.AttestationServicer):
    """Passes the stream on both ways; the hooks change messages in place. `kept` outlives the streams."""

    def __init__(self, server: Server) -> None:
        self._upstream = grpc.insecure_channel(server.address)
        self.request: Callable[[pb.AttestRequest], None] = _nothing
        self.response: Callable[[pb.AttestResponse], None] = _nothing
        self.stop_after = 99
        """Responses after which the stream ends, politely."""
        self.kept: list[bytes] = []
        self._server = grpc.server(ThreadPoolExecutor(8))
        pb_grpc.add_AttestationServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Attest(  # noqa: N802 - gRPC names
        self, requests: Iterator[pb.AttestRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.AttestResponse]:
        out: queue.SimpleQueue[pb.AttestRequest | None] = queue.SimpleQueue()
        call = pb_grpc.AttestationStub(self._upstream).Attest(iter(out.get, None), timeout=20)
        try:
            for number in range(self.stop_after):
                request = next(requests, None)
                if request is None:
                    return
                self.request(request)
                out.put(request)
                response = next(call)
                self.response(response)
                if number == self.stop_after - 1:
                    return
                yield response
        except grpc.RpcError as error:
            context.set_trailing_metadata(error.trailing_metadata())  # type: ignore[attr-defined]
            context.abort(error.code(), error.details())  # type: ignore[attr-defined]
        finally:
            out.put(None)
            call.cancel()

    def close(self) -> None:
        """Stops."""
        self._server.stop(0).wait()
        self._upstream.close()


@pytest.fixture
def middle(server: Server) -> Iterator[Middle]:
    """A machine in the middle of clients and `server`."""
    one = Middle(server)
    yield one
    one.close()


def refused(client: Client) -> HandshakeError:
    """The refusal that attesting must end with."""
    with pytest.raises(HandshakeError) as caught:
        client.attest()
    return caught.value


def test_attest_when_the_middle_only_listens_then_accepted(middle: Middle, connect: Callable[..., Client]) -> None:
    """The handshake needs no secret path, and the tests below fail for their change alone."""
    assert connect(middle.address).attest().peer.identity == "server"


def _key(suite: int) -> bytes:
    with (
        eb.Bridge(max_sessions=1, max_handshakes=1) as bridge,
        bridge.handshake(eb.Role.CLIENT, [eb.Suite(suite)]) as keys,
    ):
        return keys.public_key(eb.Suite(suite))


def _on_hello(change: Callable[[pb.ClientHello], object]) -> Change:
    def install(middle: Middle) -> None:
        def on_request(request: pb.AttestRequest) -> None:
            if request.WhichOneof("step") == "client_hello":
                request.client_hello = edit(pb.ClientHello, request.client_hello, change)

        middle.request = on_request

    return install


def _on_answer(change: Callable[[pb.ServerEvidence], object]) -> Change:
    def install(middle: Middle) -> None:
        middle.response = lambda r: change(r.server_evidence) if r.WhichOneof("step") == "server_evidence" else None  # type: ignore[assignment,return-value]

    return install


def _on_server_hello(change: Callable[[pb.ServerHello], object]) -> Change:
    def rewrite(answer: pb.ServerEvidence) -> None:
        answer.server_hello = edit(pb.ServerHello, answer.server_hello, change)

    return _on_answer(rewrite)


def _on_finished(change: Callable[[pb.ServerFinished], object]) -> Change:
    def install(middle: Middle) -> None:
        middle.response = lambda r: change(r.server_finished) if r.WhichOneof("step") == "server_finished" else None  # type: ignore[assignment,return-value]

    return install


def _widen(finished: pb.ServerFinished) -> None:
    def change(parameters: pb.SessionParameters) -> None:
        parameters.regions[0].pages += 1

    finished.parameters = edit(pb.SessionParameters, finished.parameters, change)


def _swap_client_keys(hello: pb.ClientHello) -> None:
    for share in hello.key_shares:
        share.public_key = _key(share.suite)


def _swap_server_key(hello: pb.ServerHello) -> None:
    hello.key_share.public_key = _key(hello.key_share.suite)


def _drop_first_suite(hello: pb.ClientHello) -> None:
    hello.key_shares.pop(0)


def _set(field: str, value: object) -> Callable[[object], None]:
    return lambda message: setattr(message, field, value)


def _spoil_proof(middle: Middle) -> None:
    def on_request(request: pb.AttestRequest) -> None:
        if request.WhichOneof("step") == "client_evidence":
            request.client_evidence.client_finished = bytes(48)

    middle.request = on_request


CHANGES: dict[str, tuple[Change, str]] = {
    "the client's keys are swapped": (_on_hello(_swap_client_keys), "EVIDENCE_REJECTED"),
    "the server's key is swapped": (_on_server_hello(_swap_server_key), "EVIDENCE_REJECTED"),
    "the better suite is dropped": (_on_hello(_drop_first_suite), "EVIDENCE_REJECTED"),
    "the client's nonce is changed": (_on_hello(_set("client_nonce", bytes(range(32)))), "EVIDENCE_REJECTED"),
    "the server's nonce is changed": (_on_server_hello(_set("server_nonce", bytes(range(32)))), "EVIDENCE_REJECTED"),
    "the client's version is changed": (_on_hello(_set("version", 2)), "VERSION_UNSUPPORTED"),
    "the server's version is changed": (_on_server_hello(_set("version", 2)), "VERSION_UNSUPPORTED"),
    "a region is taken out": (_on_hello(lambda h: h.regions.pop()), "EVIDENCE_REJECTED"),
    "a binding is put in": (_on_server_hello(_set("tls_binding", bytes(32))), "TLS_BINDING"),
    "the server's evidence is emptied": (_on_answer(_set("evidence", b"")), "EVIDENCE_MISSING"),
    "the client's MAC is zeroed": (_spoil_proof, "FINISHED_INVALID"),
    "the server's MAC is zeroed": (_on_finished(_set("server_finished", bytes(48))), "FINISHED_INVALID"),
    "the grant is widened": (_on_finished(_widen), "FINISHED_INVALID"),
}


@pytest.mark.parametrize(("install", "reason"), CHANGES.values(), ids=CHANGES)
def test_attest_when_the_middle_changes_something_then_refused(
    middle: Middle, connect: Callable[..., Client], install: Change, reason: str
) -> None:
    install(middle)
    assert refused(connect(middle.address)).reason == reason


def test_attest_when_the_middle_replays_the_servers_answer_then_rejected(
    middle: Middle, connect: Callable[..., Client]
) -> None:
    def replay(answer: pb.ServerEvidence) -> None:
        middle.kept.append(answer.SerializeToString())
        answer.ParseFromString(middle.kept[0])

    _on_answer(replay)(middle)
    connect(middle.address).attest()
    error = refused(connect(middle.address))
    assert error.reason == "EVIDENCE_REJECTED"
    assert "SNP_REPORT_DATA" in error.metadata["checks"]


def test_attest_when_the_middle_replays_the_clients_proof_then_finished_invalid(
    middle: Middle, connect: Callable[..., Client], server: Server
) -> None:
    def replay(request: pb.AttestRequest) -> None:
        if request.WhichOneof("step") == "client_evidence":
            middle.kept.append(request.SerializeToString())
            request.ParseFromString(middle.kept[0])

    middle.request = replay
    connect(middle.address).attest()
    assert refused(connect(middle.address)).reason == "FINISHED_INVALID"
    assert len(server.sessions) == 1


def test_attest_when_the_middle_plays_the_hello_back_then_reflected(
    middle: Middle, connect: Callable[..., Client]
) -> None:
    def keep(request: pb.AttestRequest) -> None:
        if request.WhichOneof("step") == "client_hello":
            middle.kept.append(request.client_hello)

    middle.request = keep
    _on_answer(lambda answer: setattr(answer, "server_hello", middle.kept[0]))(middle)
    assert refused(connect(middle.address)).reason == "REFLECTED"


@pytest.mark.parametrize("after", [1, 2], ids=["before the evidence", "before the end"])
def test_attest_when_the_middle_cuts_the_stream_then_truncated(
    middle: Middle, connect: Callable[..., Client], after: int
) -> None:
    middle.stop_after = after
    assert refused(connect(middle.address)).reason == "HANDSHAKE_TRUNCATED"


def test_attest_when_the_middle_skips_a_step_then_out_of_order(middle: Middle, connect: Callable[..., Client]) -> None:
    middle.response = lambda r: r.server_finished.SetInParent()
    assert refused(connect(middle.address)).reason == "OUT_OF_ORDER"
