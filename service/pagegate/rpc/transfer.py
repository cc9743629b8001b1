"""The PageTransfer service: thin around regions, receivers and the bridge."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import grpc

import enclave_bridge as eb
from pagegate.errors import PagegateError, TransferError
from pagegate.evidence.model import AccessMode
from pagegate.rpc import codec, errors
from pagegate.rpc.codec import Batch, RingBatch
from pagegate.rpc.events import Observer, ServerEvent, trace_id
from pagegate.rpc.ring import RingSource
from pagegate.rpc.spans import Batches, call_span
from pagegate.telemetry import Span, TraceContext, Tracing
from pagegate.transfer import macs
from pagegate.transfer.faults import transfer_faults
from pagegate.transfer.receiver import Receiver
from pagegate.transfer.region import Checked, Region, RegionTable
from pagegate.transfer.registry import TransferRegistry
from pagegate.transfer.session import LiveSession, SessionTable
from pagegate.transfer.traffic import Traffic
from pagegate.v1 import transfer_pb2 as pb

_log = logging.getLogger(__name__)
SERVICE = "pagegate.v1.PageTransfer"
_ACK_EVERY = 4
_MAX_BAD_RANGES = 256
# Where a record names its region (docs/protocol.md, page record); the bridge checks it again.
_REGION_FIELD = slice(32, 36)
_Requests = Iterator["pb.TransferPagesRequest | Batch | RingBatch"]


class PageTransferServicer:
    """Pages in and out of regions, for sessions that the handshake opened."""

    def __init__(
        self,
        bridge: Callable[[], eb.Bridge],
        regions: RegionTable,
        sessions: SessionTable,
        registry: TransferRegistry,
        telemetry: Tracing,
        observer: Observer,
        traffic: Traffic,
    ) -> None:
        self._bridge = bridge
        self._regions = regions
        self._sessions = sessions
        self._registry = registry
        self._telemetry = telemetry
        self._observer = observer
        self._traffic = traffic
        self.rings: RingSource | None = None
        """Hands out shared memory; None: none is offered."""

    # ---- TransferPage -------------------------------------------------------------

    def transfer_page(self, request: pb.TransferPageRequest, context: grpc.ServicerContext) -> pb.TransferPageResponse:
        """One page, verified and committed."""
        with self._call("TransferPage", context) as span:
            live = self._sessions.get(request.session_id)
            record = request.record
            if len(record) != eb.RECORD_SIZE:
                raise TransferError("LENGTH", f"a page record is {eb.RECORD_SIZE} bytes; {len(record)} came")
            region = self._region(live, int.from_bytes(record[_REGION_FIELD], "little"), AccessMode.WRITE)
            session = live.established.session
            with transfer_faults():
                result, generation = region.write_page(self._bridge(), session, record)
            with self._batches("open", region, span.context) as opened:
                self._opened(live, result, opened)
            span.set({"pagegate.region": region.spec.name, "pagegate.generation": generation})
            self._told("commit", live, region, generation, 1)
            receipt = session.mac(eb.MacPurpose.RECEIPT, macs.page(record[-eb.TAG_SIZE :], generation))
            return pb.TransferPageResponse(generation=generation, receipt=receipt)

    # ---- TransferPages ------------------------------------------------------------

    def transfer_pages(self, requests: _Requests, context: grpc.ServicerContext) -> Iterator[pb.TransferPagesResponse]:
        """Begin, batches, commit."""
        with self._call("TransferPages", context) as span:
            begin = _begin(requests)
            live = self._sessions.get(begin.session_id)
            receiver = self._begin(live, begin)
            try:
                span.set({"pagegate.region": receiver.region.spec.name, "pagegate.pages": receiver.expected_pages})
                yield pb.TransferPagesResponse(begun=pb.TransferBegun(resume_at_batch=receiver.batches))
                receiver.began = receiver.began or span.context
                try:
                    with self._batches("open", receiver.region, span.context, receiver.began) as opened:
                        yield from self._receive(requests, live, receiver, opened)
                except PagegateError as error:
                    self._ended("refused")
                    if error.reason == "DRAINING":
                        yield self._ack(live.established.session, receiver)
                    raise
            finally:
                receiver.release()

    def _begin(self, live: LiveSession, begin: pb.TransferBegin) -> Receiver:
        with transfer_faults():
            live.established.session.check_mac(
                eb.MacPurpose.TRANSFER,
                macs.begin(begin.transfer_id, begin.region, begin.expected_pages, begin.mode),
                begin.mac,
            )
        if begin.mode not in (pb.TRANSFER_MODE_REPLACE, pb.TRANSFER_MODE_DELTA):
            raise TransferError("MALFORMED_MESSAGE", f"transfer mode {begin.mode} is unknown")
        region = self._region(live, begin.region, AccessMode.WRITE)
        with transfer_faults():
            return self._registry.begin(
                region,
                begin.transfer_id,
                live.owner,
                expected_pages=begin.expected_pages,
                delta=begin.mode == pb.TRANSFER_MODE_DELTA,
            )

    def _receive(
        self, requests: _Requests, live: LiveSession, receiver: Receiver, opened: Batches
    ) -> Iterator[pb.TransferPagesResponse]:
        limits = live.established.limits
        session = live.established.session
        for message in _until_broken(requests):
            if isinstance(message, Batch | RingBatch):
                if len(message.records) > limits.max_batch_pages * eb.RECORD_SIZE:
                    raise TransferError(
                        "BATCH_TOO_LARGE",
                        f"a batch of {len(message.records)} bytes; the limit is {limits.max_batch_pages} pages",
                    )
                self._opened(live, receiver.batch(session, message.number, message.records), opened)
                if receiver.batches % _ACK_EVERY == 0:
                    yield self._ack(session, receiver)
                continue
            step = message.WhichOneof("step")
            if step == "commit":
                yield self._commit(live, receiver, message.commit)
                return
            if step == "abort":
                with transfer_faults():
                    session.check_mac(eb.MacPurpose.TRANSFER, macs.abort(receiver.transfer_id), message.abort.mac)
                self._registry.abandon(receiver)
                return
            raise TransferError("OUT_OF_ORDER", f"expected a batch or a commit, the client sent {step}")
        raise TransferError(
            "TRANSFER_TRUNCATED",
            "the stream ended before its commit; nothing became visible. Begin again with the same transfer_id to resume",
        )

    def _ack(self, session: eb.Session, receiver: Receiver) -> pb.TransferPagesResponse:
        receipt = session.mac(eb.MacPurpose.RECEIPT, macs.ack(receiver.transfer_id, receiver.batches))
        return pb.TransferPagesResponse(ack=pb.TransferAck(batches=receiver.batches, receipt=receipt))

    def _commit(self, live: LiveSession, receiver: Receiver, commit: pb.TransferCommit) -> pb.TransferPagesResponse:
        session = live.established.session
        started = time.monotonic()
        with self._telemetry.span("pagegate.server.commit", {"pagegate.region": receiver.region.spec.name}) as span:
            receipt = receiver.commit(session, commit.pages, commit.mac)
            span.set({"pagegate.generation": receipt.generation, "pagegate.pages": receipt.pages})
        self._registry.finished(receiver)
        mode = "delta" if receiver.delta else "replace"
        labels = {"pagegate.mode": mode, "pagegate.region": receiver.region.spec.name}
        self._telemetry.record("pagegate.commit.duration", time.monotonic() - started, labels)
        self._ended("ok")
        transfer = receiver.transfer_id.hex()
        self._told("commit", live, receiver.region, receipt.generation, receipt.pages, transfer=transfer)
        mac = session.mac(
            eb.MacPurpose.RECEIPT,
            macs.committed(receiver.transfer_id, receipt.pages, receipt.generation, receipt.commit_mac),
        )
        return pb.TransferPagesResponse(committed=pb.TransferCommitted(generation=receipt.generation, receipt=mac))

    def _ended(self, outcome: str) -> None:
        self._telemetry.count("pagegate.transfers", 1, {"pagegate.direction": "in", "pagegate.outcome": outcome})

    # ---- GetRegion ------------------------------------------------------------------

    def get_region(
        self, request: pb.GetRegionRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GetRegionResponse | Batch]:
        """The committed generation, sealed with this side's key."""
        with self._call("GetRegion", context) as span:
            live = self._sessions.get(request.session_id)
            session = live.established.session
            with transfer_faults():
                session.check_mac(
                    eb.MacPurpose.TRANSFER,
                    macs.get(request.transfer_id, request.region, request.first_gpa, request.pages),
                    request.mac,
                )
            region = self._region(live, request.region, AccessMode.READ)
            spec = region.spec
            pages = request.pages or max(0, (spec.base_gpa - request.first_gpa) // eb.PAGE_SIZE + spec.pages)
            region.window(request.first_gpa, pages)
            span.set({"pagegate.region": spec.name, "pagegate.pages": pages})
            with (
                transfer_faults(),
                region.read(self._bridge()) as reading,
                self._bridge().transfer(
                    request.transfer_id, region=region.number, base_gpa=spec.base_gpa, pages=spec.pages
                ) as transfer,
                self._batches("seal", region, span.context) as sealed,
            ):
                mac = session.mac(
                    eb.MacPurpose.RECEIPT, macs.info(request.transfer_id, spec.base_gpa, spec.pages, reading.generation)
                )
                self._told("read", live, region, reading.generation, pages)
                yield pb.GetRegionResponse(
                    info=pb.RegionInfo(base_gpa=spec.base_gpa, pages=spec.pages, generation=reading.generation, mac=mac)
                )
                step = live.established.limits.max_batch_pages
                for number, first in enumerate(range(0, pages, step)):
                    count = min(step, pages - first)
                    records, result = reading.seal(
                        session, transfer, first_gpa=request.first_gpa + first * eb.PAGE_SIZE, pages=count
                    )
                    live.pages_out += count
                    self._traffic.add(sent=count * eb.PAGE_SIZE)
                    sealed(count, result.nanoseconds)
                    yield Batch(records, number)
                yield pb.GetRegionResponse(end=pb.RegionEnd(pages=pages, mac=session.commit_mac(transfer)))

    # ---- VerifyRegion ---------------------------------------------------------------

    def verify_region(self, request: pb.VerifyRegionRequest, context: grpc.ServicerContext) -> pb.VerifyRegionResponse:
        """Which committed pages are not what was written."""
        with self._call("VerifyRegion", context) as span:
            live = self._sessions.get(request.session_id)
            session = live.established.session
            with transfer_faults():
                session.check_mac(
                    eb.MacPurpose.CONTROL,
                    macs.verify(request.nonce, request.region, request.first_gpa, request.pages),
                    request.mac,
                )
            if len(request.nonce) != macs.NONCE_SIZE:
                raise TransferError("MALFORMED_MESSAGE", f"nonce is {len(request.nonce)} bytes; it must be 16")
            region = self._region(live, request.region, AccessMode.READ)
            spec = region.spec
            pages = request.pages or max(0, (spec.base_gpa - request.first_gpa) // eb.PAGE_SIZE + spec.pages)
            with transfer_faults():
                checked = region.verify(request.first_gpa, pages, max_ranges=_MAX_BAD_RANGES)
            span.set({"pagegate.region": spec.name, "pagegate.pages": checked.pages})
            if checked.bad_pages:
                self._report_tampering(live, region, checked)
            bad = [(spec.base_gpa + r.first * eb.PAGE_SIZE, r.pages) for r in checked.bad]
            mac = session.mac(
                eb.MacPurpose.CONTROL,
                macs.verified(request.nonce, checked.generation, checked.pages, checked.bad_pages, bad),
            )
            return pb.VerifyRegionResponse(
                generation=checked.generation,
                pages=checked.pages,
                bad_pages=checked.bad_pages,
                bad=[pb.PageRange(first_gpa=gpa, pages=count) for gpa, count in bad],
                mac=mac,
            )

    def _report_tampering(self, live: LiveSession, region: Region, checked: Checked) -> None:
        _log.error(
            "memory tampering detected: %d of %d pages of region %s are not what was written to generation %d",
            checked.bad_pages,
            checked.pages,
            region.spec.name,
            checked.generation,
        )
        self._telemetry.count("pagegate.refusals", 1, {"pagegate.reason": "TAMPERED", "pagegate.role": "server"})
        self._observer(
            ServerEvent(
                "refusal",
                live.verdict.identity or live.peer_address,
                {
                    "method": "VerifyRegion",
                    "reason": "TAMPERED",
                    "region": region.spec.name,
                    "generation": checked.generation,
                    "bad_pages": checked.bad_pages,
                },
            )
        )

    # ---- OpenRing -----------------------------------------------------------------------

    def open_ring(self, request: pb.OpenRingRequest, context: grpc.ServicerContext) -> pb.OpenRingResponse:
        """Offers shared memory to the session's peer; an empty offer where there is none."""
        with self._call("OpenRing", context):
            live = self._sessions.get(request.session_id)
            session = live.established.session
            with transfer_faults():
                session.check_mac(eb.MacPurpose.CONTROL, macs.ring(request.nonce), request.mac)
            if len(request.nonce) != macs.NONCE_SIZE:
                raise TransferError("MALFORMED_MESSAGE", f"nonce is {len(request.nonce)} bytes; it must be 16")
            response = pb.OpenRingResponse()
            offer = None if self.rings is None else self.rings.offer(request.session_id)
            if offer is not None:
                response = pb.OpenRingResponse(socket=offer.socket, token=offer.token, capacity=offer.capacity)
            response.mac = session.mac(
                eb.MacPurpose.CONTROL,
                macs.ring_offer(request.nonce, response.token, response.capacity, response.socket),
            )
            return response

    # ---- shared -----------------------------------------------------------------------

    def _region(self, live: LiveSession, number: int, mode: AccessMode) -> Region:
        region = self._regions.by_number(number)
        live.granted(number, mode)
        return region

    def _told(self, kind: str, live: LiveSession, region: Region, generation: int, pages: int, **details: str) -> None:
        """Tells the observer, before the peer is told: what was acknowledged or handed out is in the audit log."""
        self._observer(
            ServerEvent(
                kind,
                live.verdict.identity or live.peer_address,
                {
                    "region": region.spec.name,
                    "generation": generation,
                    "pages": pages,
                    **details,
                    "session": live.established.session_id.hex(),
                },
            )
        )

    def _batches(
        self,
        operation: Literal["seal", "open"],
        region: Region,
        call: TraceContext | None,
        transfer: TraceContext | None = None,
    ) -> Batches:
        crossed = {
            "pagegate.direction": "in" if operation == "open" else "out",
            "pagegate.region": region.spec.name,
        }
        where = {"pagegate.bridge.backend": self._bridge().isolation}
        return Batches(self._telemetry, operation, call, transfer, crossed, where)

    def _opened(self, live: LiveSession, result: eb.OpenResult, opened: Batches) -> None:
        live.pages_in += result.pages
        self._traffic.add(received=result.pages * eb.PAGE_SIZE)
        opened(result.pages, result.nanoseconds)

    @contextmanager
    def _call(self, method: str, context: grpc.ServicerContext) -> Iterator[Span]:
        parent = self._telemetry.extract(context.invocation_metadata())
        try:
            with call_span(self._telemetry, f"{SERVICE}/{method}", "server", parent) as span:
                try:
                    with transfer_faults():
                        yield span
                except PagegateError as error:
                    span.refused(error.reason)
                    self._refused(method, context.peer(), error, span)
                    raise
        except PagegateError as error:
            errors.abort(context, error)

    def _refused(self, method: str, peer: str, error: PagegateError, span: Span) -> None:
        _log.warning("%s from %s refused: %s", method, peer, error)
        self._telemetry.count("pagegate.refusals", 1, {"pagegate.reason": error.reason, "pagegate.role": "server"})
        details = {"method": method, "reason": error.reason}
        self._observer(ServerEvent("refusal", peer, details, error.message, trace_id=trace_id(span)))


def _until_broken(requests: _Requests) -> _Requests:
    """The requests, ended (not raised) by a peer that vanishes: the caller then finds the commit missing."""
    while True:
        try:
            message = next(requests, None)
        except PagegateError:
            # This side ends the stream: too slow, too much, or draining.
            raise
        except Exception as error:
            _log.debug("the request stream broke: %r", error)
            return
        if message is None:
            return
        yield message


def _begin(requests: _Requests) -> pb.TransferBegin:
    for message in _until_broken(requests):
        if not isinstance(message, Batch | RingBatch) and message.WhichOneof("step") == "begin":
            return message.begin
        raise TransferError("OUT_OF_ORDER", "a transfer starts with begin")
    raise TransferError("TRANSFER_TRUNCATED", "the stream ended before its begin")


def add_to_server(servicer: PageTransferServicer, server: grpc.Server) -> None:
    """Registers the service with the codec that leaves pages uncopied."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "TransferPage": grpc.unary_unary_rpc_method_handler(
            servicer.transfer_page,
            request_deserializer=pb.TransferPageRequest.FromString,
            response_serializer=pb.TransferPageResponse.SerializeToString,
        ),
        "TransferPages": grpc.stream_stream_rpc_method_handler(
            servicer.transfer_pages,
            request_deserializer=codec.decode_request,
            response_serializer=pb.TransferPagesResponse.SerializeToString,
        ),
        "OpenRing": grpc.unary_unary_rpc_method_handler(
            servicer.open_ring,
            request_deserializer=pb.OpenRingRequest.FromString,
            response_serializer=pb.OpenRingResponse.SerializeToString,
        ),
        "GetRegion": grpc.unary_stream_rpc_method_handler(
            servicer.get_region,
            request_deserializer=pb.GetRegionRequest.FromString,
            response_serializer=codec.encode,
        ),
        "VerifyRegion": grpc.unary_unary_rpc_method_handler(
            servicer.verify_region,
            request_deserializer=pb.VerifyRegionRequest.FromString,
            response_serializer=pb.VerifyRegionResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
