"""Reason codes on the wire and back, through a real gRPC server that fails on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from pagegate.errors import (
    BridgeError,
    EndorsementError,
    EvidenceError,
    HandshakeError,
    PagegateError,
    PlatformError,
    TransferError,
)
from pagegate.rpc import errors

Fail = Callable[[grpc.ServicerContext], None]


class Failing:
    """A server whose every call ends as `fail` says."""

    def __init__(self) -> None:
        self.fail: Fail = lambda context: None
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((self,))  # type: ignore[arg-type]
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._server.start()

    def service(self, details: object) -> grpc.RpcMethodHandler:
        """gRPC asks here for every method."""
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.fail(context) or b"")

    def call(self, fail: Fail) -> grpc.RpcError:
        """The error a client sees."""
        self.fail = fail
        with pytest.raises(grpc.RpcError) as caught:
            self._channel.unary_unary("/test/Fail")(b"", timeout=20)
        return caught.value

    def close(self) -> None:
        """Stops everything."""
        self._channel.close()
        self._server.stop(0).wait()


@pytest.fixture(scope="module")
def failing() -> Iterator[Failing]:
    """One server for this file."""
    server = Failing()
    yield server
    server.close()


def over_the_wire(failing: Failing, error: PagegateError) -> grpc.RpcError:
    """`error`, raised in a server and seen by a client."""
    return failing.call(lambda context: errors.abort(context, error))


def details_of(error: grpc.RpcError) -> dict[str, object]:
    """The details by type name."""
    status = rpc_status.from_call(error)
    assert status is not None
    found: dict[str, object] = {}
    for box in status.details:
        kind = getattr(error_details_pb2, box.type_url.rpartition(".")[2])
        found[kind.DESCRIPTOR.name] = kind.FromString(box.value)
    return found


@pytest.mark.parametrize("reason", errors.STATUS_OF_REASON)
def test_from_rpc_error_when_a_reason_crossed_the_wire_then_it_is_the_same(failing: Failing, reason: str) -> None:
    sent = HandshakeError(reason, "what happened", metadata={"region": "book"}, retry_after=None)
    failed = over_the_wire(failing, sent)
    back = errors.from_rpc_error(failed, HandshakeError)
    assert (type(back), back.reason, dict(back.metadata)) == (HandshakeError, reason, {"region": "book"})
    assert failed.code() is errors.STATUS_OF_REASON[reason]


def test_to_status_when_any_reason_then_error_info_names_domain_reason_and_metadata(failing: Failing) -> None:
    failed = over_the_wire(failing, TransferError("OUT_OF_RANGE", "too far", metadata={"region_base": "0x1000"}))
    assert details_of(failed)["ErrorInfo"] == error_details_pb2.ErrorInfo(
        reason="OUT_OF_RANGE", domain="pagegate", metadata={"region_base": "0x1000"}
    )


def test_to_status_when_retry_helps_then_retry_info(failing: Failing) -> None:
    failed = over_the_wire(failing, HandshakeError("TOO_MANY_HANDSHAKES", "busy", retry_after=0.25))
    assert details_of(failed)["RetryInfo"] == error_details_pb2.RetryInfo(retry_delay=Duration(nanos=250_000_000))
    assert errors.from_rpc_error(failed).retry_after == 0.25


def test_to_status_when_retry_does_not_help_then_no_retry_info(failing: Failing) -> None:
    failed = over_the_wire(failing, HandshakeError("EVIDENCE_MISSING", "none"))
    assert "RetryInfo" not in details_of(failed)
    assert errors.from_rpc_error(failed).retry_after is None


def test_to_status_when_the_argument_is_at_fault_then_bad_request_says_what(failing: Failing) -> None:
    found = details_of(over_the_wire(failing, HandshakeError("MALFORMED_MESSAGE", "nonce of 3 bytes")))
    assert found["BadRequest"].field_violations[0].description == "nonce of 3 bytes"  # type: ignore[attr-defined]


def test_to_status_when_evidence_is_rejected_then_reference_values_stay_here(failing: Failing) -> None:
    sent = HandshakeError("EVIDENCE_REJECTED", "expected c0ffee", metadata={"checks": "SNP_MEASUREMENT"})
    failed = over_the_wire(failing, sent)
    assert failed.details() == "evidence rejected"
    assert b"c0ffee" not in rpc_status.from_call(failed).SerializeToString()


def test_from_rpc_error_when_evidence_was_rejected_then_the_message_names_side_and_checks(failing: Failing) -> None:
    sent = HandshakeError("EVIDENCE_REJECTED", "secret", metadata={"checks": "SNP_MEASUREMENT,SNP_HOST_DATA"})
    back = errors.from_rpc_error(over_the_wire(failing, sent), HandshakeError)
    assert back.message == "the server refused this side: evidence rejected: SNP_MEASUREMENT,SNP_HOST_DATA"


@pytest.mark.parametrize("kind", [BridgeError, PlatformError, EndorsementError, EvidenceError])
def test_to_status_when_the_fault_is_this_sides_then_no_details_leave(
    failing: Failing, kind: type[PagegateError]
) -> None:
    failed = over_the_wire(failing, kind("TSM_IO", "cannot read /sys/secret", metadata={"path": "/sys/secret"}))
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert b"/sys/secret" not in rpc_status.from_call(failed).SerializeToString()
    assert errors.from_rpc_error(failed).reason == "TSM_IO"


def test_to_status_when_this_sides_fault_passes_then_unavailable_with_retry(failing: Failing) -> None:
    failed = over_the_wire(failing, EndorsementError("KDS_RATE_LIMITED", "slow down", retry_after=3.0))
    assert failed.code() is grpc.StatusCode.UNAVAILABLE
    assert errors.from_rpc_error(failed).retry_after == 3.0


def test_to_status_when_the_reason_is_not_in_the_table_then_internal(failing: Failing) -> None:
    assert over_the_wire(failing, HandshakeError("NEW", "x")).code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, TransferError, "PEER_UNAVAILABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, HandshakeError, "HANDSHAKE_TIMEOUT"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TransferError, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, TransferError, "OVERLOADED"),
        (grpc.StatusCode.CANCELLED, TransferError, "CANCELLED"),
        (grpc.StatusCode.UNIMPLEMENTED, HandshakeError, "RPC_UNIMPLEMENTED"),
    ],
)
def test_from_rpc_error_when_there_are_no_details_then_the_code_decides(
    failing: Failing, code: grpc.StatusCode, kind: type[PagegateError], reason: str
) -> None:
    back = errors.from_rpc_error(failing.call(lambda context: context.abort(code, "no")), kind)
    assert (type(back), back.reason) == (kind, reason)


def _info(domain: str) -> Any:
    box = Any()
    box.Pack(error_details_pb2.ErrorInfo(reason="TAMPERED", domain=domain))
    return box


def _ending(status: Status, code: grpc.StatusCode, text: str = "x") -> Fail:
    def fail(context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, text)

    return fail


def test_from_rpc_error_when_the_domain_is_foreign_then_its_reason_is_not_taken(failing: Failing) -> None:
    status = Status(code=14, message="x", details=[_info("example.com")])
    assert (
        errors.from_rpc_error(failing.call(_ending(status, grpc.StatusCode.UNAVAILABLE))).reason == "PEER_UNAVAILABLE"
    )


def test_from_rpc_error_when_the_status_contradicts_the_call_then_the_code_decides(failing: Failing) -> None:
    status = Status(code=5, message="x", details=[_info("pagegate")])
    assert (
        errors.from_rpc_error(failing.call(_ending(status, grpc.StatusCode.UNAVAILABLE))).reason == "PEER_UNAVAILABLE"
    )


def test_from_rpc_error_when_a_detail_is_garbage_then_the_code_decides(failing: Failing) -> None:
    box = _info("pagegate")
    box.value = b"\xff\xff\xff"
    status = Status(code=14, message="x", details=[box])
    assert (
        errors.from_rpc_error(failing.call(_ending(status, grpc.StatusCode.UNAVAILABLE))).reason == "PEER_UNAVAILABLE"
    )


@pytest.mark.parametrize(("seconds", "taken"), [(-5, 0.0), (1, 1.0), (10**9, 60.0)])
def test_from_rpc_error_when_the_peer_names_a_delay_then_it_is_bounded(
    failing: Failing, seconds: int, taken: float
) -> None:
    box = Any()
    box.Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=seconds)))
    status = Status(code=14, message="x", details=[_info("pagegate"), box])
    assert errors.from_rpc_error(failing.call(_ending(status, grpc.StatusCode.UNAVAILABLE))).retry_after == taken
