"""One table from reason codes to gRPC status codes, and the way there and back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2
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

DOMAIN = "pagegate"

STATUS_OF_REASON: dict[str, grpc.StatusCode] = {
    # handshake
    "MALFORMED_MESSAGE": grpc.StatusCode.INVALID_ARGUMENT,
    "VERSION_UNSUPPORTED": grpc.StatusCode.INVALID_ARGUMENT,
    "SUITE_UNSUPPORTED": grpc.StatusCode.INVALID_ARGUMENT,
    "KEY_SHARE_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "OUT_OF_ORDER": grpc.StatusCode.FAILED_PRECONDITION,
    "EVIDENCE_MISSING": grpc.StatusCode.UNAUTHENTICATED,
    "EVIDENCE_TYPE": grpc.StatusCode.UNAUTHENTICATED,
    "EVIDENCE_REJECTED": grpc.StatusCode.PERMISSION_DENIED,
    "REFLECTED": grpc.StatusCode.UNAUTHENTICATED,
    "FINISHED_INVALID": grpc.StatusCode.UNAUTHENTICATED,
    "TLS_BINDING": grpc.StatusCode.UNAUTHENTICATED,
    "HANDSHAKE_TIMEOUT": grpc.StatusCode.DEADLINE_EXCEEDED,
    "HANDSHAKE_TRUNCATED": grpc.StatusCode.ABORTED,
    "TOO_MANY_HANDSHAKES": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TOO_MANY_SESSIONS": grpc.StatusCode.RESOURCE_EXHAUSTED,
    # sessions and regions
    "SESSION_UNKNOWN": grpc.StatusCode.UNAUTHENTICATED,
    "SESSION_EXPIRED": grpc.StatusCode.UNAUTHENTICATED,
    "SESSION_CLOSED": grpc.StatusCode.UNAUTHENTICATED,
    "EXHAUSTED": grpc.StatusCode.UNAUTHENTICATED,
    "REGION_UNKNOWN": grpc.StatusCode.NOT_FOUND,
    "REGION_NOT_GRANTED": grpc.StatusCode.PERMISSION_DENIED,
    "REGION_BUSY": grpc.StatusCode.ABORTED,
    "REGION_IO": grpc.StatusCode.INTERNAL,
    "REGION_SIZE": grpc.StatusCode.FAILED_PRECONDITION,
    "REGION_UNPROTECTED": grpc.StatusCode.FAILED_PRECONDITION,
    # pages and transfers
    "TAMPERED": grpc.StatusCode.DATA_LOSS,
    "REPLAYED": grpc.StatusCode.ALREADY_EXISTS,
    "EPOCH": grpc.StatusCode.FAILED_PRECONDITION,
    "HEADER": grpc.StatusCode.INVALID_ARGUMENT,
    "LENGTH": grpc.StatusCode.INVALID_ARGUMENT,
    "UNALIGNED": grpc.StatusCode.INVALID_ARGUMENT,
    "OUT_OF_RANGE": grpc.StatusCode.OUT_OF_RANGE,
    "WRONG_SESSION": grpc.StatusCode.INVALID_ARGUMENT,
    "WRONG_REGION": grpc.StatusCode.INVALID_ARGUMENT,
    "MAC": grpc.StatusCode.UNAUTHENTICATED,
    "BATCH_TOO_LARGE": grpc.StatusCode.INVALID_ARGUMENT,
    "BATCH_OUT_OF_ORDER": grpc.StatusCode.ABORTED,
    "TRANSFER_INCOMPLETE": grpc.StatusCode.FAILED_PRECONDITION,
    "TRANSFER_MISMATCH": grpc.StatusCode.FAILED_PRECONDITION,
    "TRANSFER_IN_USE": grpc.StatusCode.ABORTED,
    "TRANSFER_TRUNCATED": grpc.StatusCode.ABORTED,
    "SOURCE_UNREADABLE": grpc.StatusCode.INTERNAL,
    "TARGET_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TARGET_IO": grpc.StatusCode.INTERNAL,
    "NOTHING_STAGED": grpc.StatusCode.FAILED_PRECONDITION,
    "RING_CLOSED": grpc.StatusCode.ABORTED,
    "RING_CORRUPT": grpc.StatusCode.ABORTED,
    "RING_TIMEOUT": grpc.StatusCode.ABORTED,
    "RING_LIMIT": grpc.StatusCode.RESOURCE_EXHAUSTED,
    # the server as a whole
    "DRAINING": grpc.StatusCode.UNAVAILABLE,
    "REGION_LOST": grpc.StatusCode.DATA_LOSS,
    "BRIDGE_DIED": grpc.StatusCode.UNAVAILABLE,
    "TOO_MANY_STREAMS": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TOO_MANY_BYTES_IN_FLIGHT": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "SLOW_PEER": grpc.StatusCode.DEADLINE_EXCEEDED,
}
_NAMED = re.compile(r"\[([A-Z_]{3,40})\]$")
_REASON_OF_CODE = {
    grpc.StatusCode.UNAVAILABLE: "PEER_UNAVAILABLE",
    grpc.StatusCode.DEADLINE_EXCEEDED: "HANDSHAKE_TIMEOUT",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "OVERLOADED",
    grpc.StatusCode.CANCELLED: "CANCELLED",
}
_MAX_RETRY_AFTER_S = 60.0
# These concern this side only; a peer learns no more than that they happened.
_INTERNAL = (BridgeError, PlatformError, EndorsementError, EvidenceError)


def to_status(error: PagegateError) -> Status:
    """The google.rpc.Status of an error: ErrorInfo always, RetryInfo and BadRequest where they apply."""
    code = STATUS_OF_REASON.get(error.reason, grpc.StatusCode.INTERNAL)
    if isinstance(error, _INTERNAL):
        code = grpc.StatusCode.UNAVAILABLE if error.retry_after else grpc.StatusCode.INTERNAL
        message = "this side cannot attest or seal now; its operator has the details"
        metadata = {}
    else:
        # EVIDENCE_REJECTED carries reference values in its message: those are for this side's operator.
        message = "evidence rejected" if error.reason == "EVIDENCE_REJECTED" else error.message
        metadata = dict(error.metadata)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(field="request", description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    return Status(code=code_pb2.Code.Value(code.name), message=message, details=[_pack(detail) for detail in details])


def _pack(detail: Message) -> Any:
    box = Any()
    box.Pack(detail)
    return box


def abort(context: grpc.ServicerContext, error: PagegateError) -> NoReturn:
    """Ends a call with an error's status."""
    context.abort_with_status(rpc_status.to_status(to_status(error)))
    raise AssertionError("abort_with_status returned")


def _details(error: grpc.Call) -> tuple[str, dict[str, str], float | None]:
    """Reason, metadata and seconds to wait, as far as the peer says. Raises ValueError, DecodeError."""
    status = rpc_status.from_call(error)
    return _read_details(status.details if status else ())


def _read_details(details: Iterable[Any]) -> tuple[str, dict[str, str], float | None]:
    reason, metadata, retry_after = "", {}, None
    for detail in details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            if info.domain == DOMAIN:
                reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            # The peer may say anything; callers sleep for this long.
            retry_after = min(max(0.0, delay.seconds + delay.nanos / 1e9), _MAX_RETRY_AFTER_S)
    return reason, metadata, retry_after


def from_rpc_error(error: grpc.RpcError, kind: type[PagegateError] = TransferError) -> PagegateError:
    """The typed error behind a failed call, as the peer named it."""
    assert isinstance(error, grpc.Call)
    try:
        reason, metadata, retry_after = _details(error)
    except (ValueError, DecodeError):
        # A status that contradicts the call's own, or garbage: what is left is the code.
        reason, metadata, retry_after = "", {}, None
    code = error.code()
    message = error.details() or code.name
    if not reason and (named := _NAMED.search(message)) and STATUS_OF_REASON.get(named[1]) is code:
        # Ended in the middle of a message, where a status has no details.
        return kind(named[1], message.removesuffix(named[0]).rstrip(), retry_after=1.0)
    if not reason:
        reason = _REASON_OF_CODE.get(code, f"RPC_{code.name}")
        message = f"the server cannot be reached or broke off ({message}); check the address and that it serves"
        if kind is TransferError and reason == "HANDSHAKE_TIMEOUT":
            reason = "DEADLINE_EXCEEDED"
    elif metadata.get("checks"):
        message = f"{message}: {metadata['checks']}"
    if reason in ("EVIDENCE_REJECTED", "REGION_NOT_GRANTED") and kind is HandshakeError:
        return HandshakeError(reason, f"the server refused this side: {message}", metadata=metadata)
    return kind(reason, message, metadata=metadata, retry_after=retry_after)


def from_status(status: Status) -> TransferError:
    """The typed error behind a google.rpc.Status that came another way than as the end of a call."""
    try:
        reason, metadata, retry_after = _read_details(status.details)
    except DecodeError:
        reason, metadata, retry_after = "", {}, None
    return TransferError(reason or "RING_CLOSED", status.message, metadata=metadata, retry_after=retry_after)
