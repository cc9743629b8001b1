"""What a server does with a ring once it has one: runs transfers out of it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

import grpc
from google.protobuf.message import DecodeError

import enclave_bridge as eb
from pagegate.errors import TransferError
from pagegate.rpc import errors
from pagegate.rpc.admission import Gate
from pagegate.rpc.codec import Batch, RingBatch
from pagegate.rpc.ring import METADATA, REFUSED, REQUEST, RESPONSE, RingLink, decode_metadata
from pagegate.transfer.session import SessionTable
from pagegate.v1 import transfer_pb2 as pb

_Requests = Iterator["pb.TransferPagesRequest | Batch | RingBatch"]
Converse = Callable[[_Requests, grpc.ServicerContext], Iterator[pb.TransferPagesResponse]]
"""What runs one transfer: PageTransferServicer.transfer_pages."""
_METHOD = "/pagegate.v1.PageTransfer/TransferPages"
_STATUS_KEY = "grpc-status-details-bin"


class RingTransfers:
    """Transfers of attested peers, through the server's gate as those by gRPC are."""

    def __init__(self, converse: Converse, sessions: SessionTable, gate: Gate) -> None:
        self._converse = converse
        self._sessions = sessions
        self._gate = gate

    def session(self, session_id: bytes) -> eb.Session:
        """The session that a ring is for. Raises TransferError SESSION_UNKNOWN or SESSION_EXPIRED."""
        return self._sessions.get(session_id).established.session

    def run(self, link: RingLink, session_id: bytes, peer: str, *, idle_s: float | None = None) -> None:
        """One transfer after another, until the peer ends, errs, is idle for so long, or its session is over.

        Raises TransferError for what ends it.
        """
        while True:
            metadata, begin = self._first(link, session_id, idle_s)
            # The servicer needs of a gRPC context only what _RingContext has.
            context = cast(grpc.ServicerContext, _RingContext(peer, metadata))
            try:
                with self._admitted(context):
                    if begin.begin.session_id != session_id:
                        errors.abort(context, TransferError("WRONG_SESSION", "this ring belongs to another session"))
                    self._answer(link, begin, context)
            except _RefusedError as refused:
                link.put(REFUSED, refused.status)
                return

    @contextlib.contextmanager
    def _admitted(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Counts the transfer as gRPC's are counted, so that a drain waits for it."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._gate.admitted(_METHOD))
            except TransferError as error:
                errors.abort(context, error)
            yield

    def _answer(self, link: RingLink, begin: pb.TransferPagesRequest, context: grpc.ServicerContext) -> None:
        requests = itertools.chain([begin], self._requests(link))
        with contextlib.closing(cast(Any, self._converse(requests, context))) as responses:
            for response in responses:
                link.put(RESPONSE, response.SerializeToString())

    def _first(
        self, link: RingLink, session_id: bytes, idle_s: float | None
    ) -> tuple[tuple[tuple[str, str | bytes], ...], pb.TransferPagesRequest]:
        """Waits for the next Begin, for as long as the session lives."""
        metadata: tuple[tuple[str, str | bytes], ...] = ()
        started = time.monotonic()
        while True:
            try:
                message = link.next(1.0)
            except TransferError as error:
                idle = idle_s is not None and time.monotonic() - started > idle_s
                if error.reason != "RING_TIMEOUT" or idle:
                    raise
                self._sessions.get(session_id)
                continue
            if message.kind == METADATA:
                metadata = decode_metadata(link.take())
            elif message.kind == REQUEST:
                return metadata, _request(link)
            else:
                raise TransferError("OUT_OF_ORDER", "a transfer starts with begin")

    def _requests(self, link: RingLink) -> _Requests:
        while True:
            message = link.next()
            if message.kind == eb.RECORDS_KIND:
                self._gate.check_finish()
                yield RingBatch(link.records(message), message.number)
            elif message.kind == REQUEST:
                yield _request(link)
            else:
                raise TransferError("MALFORMED_MESSAGE", f"a message of kind {message.kind} is not a request")


def _request(link: RingLink) -> pb.TransferPagesRequest:
    try:
        return pb.TransferPagesRequest.FromString(link.take())
    except DecodeError as error:
        raise TransferError("MALFORMED_MESSAGE", f"not a TransferPagesRequest: {error}") from error


class _RefusedError(Exception):
    """A transfer was refused with this google.rpc.Status, serialized."""

    def __init__(self, status: bytes) -> None:
        super().__init__()
        self.status = status


class _RingContext:
    """The part of a gRPC context that the servicer uses."""

    def __init__(self, peer: str, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self._peer = peer
        self._metadata = metadata

    def peer(self) -> str:
        """As gRPC's."""
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """As gRPC's."""
        return self._metadata

    def abort_with_status(self, status: Any) -> NoReturn:
        """As gRPC's."""
        raise _RefusedError(dict(status.trailing_metadata)[_STATUS_KEY])
