"""The PageTransfer service: thin around regions, receivers and the bridge."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

import enclave_bridge as eb
from pagegate.errors import PagegateError, TransferError
from pagegate.evidence.model import AccessMode
from pagegate.rpc import codec, errors
from pagegate.rpc.codec import Batch
from pagegate.rpc.events import Observer, ServerEvent, trace_id
from pagegate.telemetry import Span, Tracing, rpc_attributes
from pagegate.transfer import macs
from pagegate.transfer.faults import transfer_faults
from pagegate.transfer.receiver import Receiver
from pagegate.transfer.region import Region, RegionTable
from pagegate.transfer.registry import TransferRegistry
from pagegate.transfer.session import LiveSession, SessionTable
from pagegate.transfer.traffic import Traffic
from pagegate.v1 import transfer_pb2 as pb

_log = logging.getLogger(__name__)
SERVICE = "pagegate.v1.PageTransfer"
_ACK_EVERY = 4
# Where a record names its region (docs/protocol.md, page record); the bridge checks it again.
_REGION_FIELD = slice(32, 36)
_Requests = Iterator["pb.TransferPagesRequest | Batch"]


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
        self._backend = bridge().isolation
        self._regions = regions
        self._sessions = sessions
        self._registry = registry
        self._telemetry = telemetry
        self._observer = observer
        self._traffic = traffic

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
            self._opened(live, region, result)
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
                try:
                    yield from self._receive(requests, live, receiver)
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
        self, requests: _Requests, live: LiveSession, receiver: Receiver
    ) -> Iterator[pb.TransferPagesResponse]:
        limits = live.established.limits
        session = live.established.session
        for message in _until_broken(requests):
            if isinstance(message, Batch):
                if len(message.records) > limits.max_batch_pages * eb.RECORD_SIZE:
                    raise TransferError(
                        "BATCH_TOO_LARGE",
                        f"a batch of {len(message.records)} bytes; the limit is {limits.max_batch_pages} pages",
                    )
                self._opened(live, receiver.region, receiver.batch(session, message.number, message.records))
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
            offset = region.window(request.first_gpa, pages)
            span.set({"pagegate.region": spec.name, "pagegate.pages": pages})
            with (
                transfer_faults(),
                region.read(self._bridge()) as (source, generation),
                self._bridge().transfer(
                    request.transfer_id, region=region.number, base_gpa=spec.base_gpa, pages=spec.pages
                ) as transfer,
            ):
                mac = session.mac(
                    eb.MacPurpose.RECEIPT, macs.info(request.transfer_id, spec.base_gpa, spec.pages, generation)
                )
                self._told("read", live, region, generation, pages)
                yield pb.GetRegionResponse(
                    info=pb.RegionInfo(base_gpa=spec.base_gpa, pages=spec.pages, generation=generation, mac=mac)
                )
                step = live.established.limits.max_batch_pages
                for number, first in enumerate(range(0, pages, step)):
                    start = offset + first * eb.PAGE_SIZE
                    count = min(step, pages - first)
                    records, result = session.seal_from(
                        transfer,
                        region=region.number,
                        first_gpa=spec.base_gpa + start,
                        source=source,
                        offset=start,
                        length=count * eb.PAGE_SIZE,
                    )
                    sent = {"pagegate.direction": "out", "pagegate.region": spec.name}
                    self._telemetry.count("pagegate.pages", count, sent)
                    self._telemetry.count("pagegate.bytes", count * eb.PAGE_SIZE, sent)
                    live.pages_out += count
                    self._traffic.add(sent=count * eb.PAGE_SIZE)
                    self._telemetry.timed_span(
                        "pagegate.bridge.seal",
                        nanoseconds=result.nanoseconds,
                        attributes={"pagegate.pages": count, "pagegate.bridge.backend": self._backend},
                    )
                    yield Batch(records, number)
                yield pb.GetRegionResponse(end=pb.RegionEnd(pages=pages, mac=session.commit_mac(transfer)))

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

    def _opened(self, live: LiveSession, region: Region, result: eb.OpenResult) -> None:
        live.pages_in += result.pages
        self._traffic.add(received=result.pages * eb.PAGE_SIZE)
        attributes = {"pagegate.direction": "in", "pagegate.region": region.spec.name}
        self._telemetry.count("pagegate.pages", result.pages, attributes)
        self._telemetry.count("pagegate.bytes", result.pages * eb.PAGE_SIZE, attributes)
        self._telemetry.timed_span(
            "pagegate.bridge.open",
            nanoseconds=result.nanoseconds,
            attributes={"pagegate.pages": result.pages, "pagegate.bridge.backend": self._backend},
        )

    @contextmanager
    def _call(self, method: str, context: grpc.ServicerContext) -> Iterator[Span]:
        parent = self._telemetry.extract(context.invocation_metadata())
        try:
            with self._telemetry.span(
                f"{SERVICE}/{method}",
                rpc_attributes(f"{SERVICE}/{method}"),
                kind="server",
                parent=parent,
            ) as span:
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
        if not isinstance(message, Batch) and message.WhichOneof("step") == "begin":
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
        "GetRegion": grpc.unary_stream_rpc_method_handler(
            servicer.get_region,
            request_deserializer=pb.GetRegionRequest.FromString,
            response_serializer=codec.encode,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
