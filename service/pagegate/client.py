"""The public client: attest, send, read.

with Client("127.0.0.1:7443", platform=platform, appraiser=appraiser, regions={"book": "write"}) as client:
    client.send("book", memory)
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
from typing_extensions import Buffer

import enclave_bridge as eb
from pagegate.errors import ConfigError, HandshakeError, PagegateError, TransferError
from pagegate.evidence.model import AccessMode, Appraiser
from pagegate.handshake.client import ClientHandshake
from pagegate.handshake.measured import MeasuredAppraiser, MeasuredPlatform
from pagegate.handshake.model import HANDSHAKE_TIMEOUT_S, SUITES_DEFAULT, Established, GrantedRegion
from pagegate.platforms.model import Platform
from pagegate.rpc import codec
from pagegate.rpc.codec import Batch
from pagegate.rpc.errors import from_rpc_error
from pagegate.rpc.retry import Retries
from pagegate.rpc.ring_client import ClientRing, OpenRing, RingCall
from pagegate.rpc.spans import Batches, call_span
from pagegate.rpc.tls import ClientTls
from pagegate.telemetry import NO_TELEMETRY, TraceContext, Tracing
from pagegate.transfer import macs
from pagegate.transfer.faults import transfer_faults
from pagegate.transfer.sender import Progress, SealHook, Sender
from pagegate.transfer.source import BufferSource, FileSource, Source
from pagegate.v1 import attestation_pb2 as att
from pagegate.v1 import attestation_pb2_grpc as att_grpc
from pagegate.v1 import transfer_pb2 as pb

_T = TypeVar("_T")
_SERVICE = "/pagegate.v1.PageTransfer/"
_RESUMABLE = frozenset(
    {
        "PEER_UNAVAILABLE",
        "TRANSFER_TRUNCATED",
        "TRANSFER_IN_USE",
        "CANCELLED",
        "DRAINING",
        "BATCH_OUT_OF_ORDER",
        "RING_CLOSED",
        "RING_CORRUPT",
        "RING_TIMEOUT",
    }
)
_ANOTHER_PIN = frozenset({"PEER_UNAVAILABLE", "TLS_BINDING"})
_REATTEST = frozenset({"SESSION_UNKNOWN", "SESSION_EXPIRED", "SESSION_CLOSED", "EXHAUSTED", "EPOCH", "BRIDGE_DIED"})
_END_WITHIN_S = 1.0
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@dataclass(frozen=True, slots=True)
class Sent:
    """A snapshot that is visible on the server."""

    pages: int
    generation: int
    seconds: float
    resumed: int
    """How often the transfer was taken up again after a break."""


@dataclass(frozen=True, slots=True)
class Read:
    """A committed generation that was read."""

    pages: int
    base_gpa: int
    generation: int


@dataclass(frozen=True, slots=True)
class RegionCheck:
    """What a server found when it checked a region's pages against their MACs."""

    generation: int
    pages: int
    """Checked."""
    bad_pages: int
    """Of them are not what was written: the memory was tampered with."""
    bad: tuple[tuple[int, int], ...]
    """First address and number of pages of each run of them, ascending; at most the first 256 runs."""

    @property
    def intact(self) -> bool:
        """True when every page is what was written."""
        return self.bad_pages == 0


class Client:
    """One attested peer of one server. Attests on first use, and again by itself when the session has ended."""

    def __init__(
        self,
        target: str,
        *,
        platform: Platform,
        appraiser: Appraiser,
        regions: Mapping[str, AccessMode | str],
        bridge: eb.Bridge | None = None,
        tls: ClientTls | Sequence[ClientTls] | None = None,
        telemetry: Tracing = NO_TELEMETRY,
        suites: Sequence[eb.Suite] = SUITES_DEFAULT,
        max_resumes: int = 8,
        ring: bool | Path = False,
    ) -> None:
        """`target`: a gRPC target such as "host:7443". `regions`: what to ask for, "read", "write" or "read-write".
        `tls`: the server certificate to accept; of several, each connection accepts one (ClientTls.pins).

        `ring`: send through shared memory where the server offers it and is on this host, else by gRPC; a path is
        where the server's Unix socket, or the file or device that both machines map, is seen from here.
        """
        self._platform = MeasuredPlatform(platform, telemetry, "client")
        self._appraiser = MeasuredAppraiser(appraiser, telemetry, "client")
        self._regions = {name: AccessMode(mode) for name, mode in regions.items()}
        self._owns_bridge = bridge is None
        self._bridge = bridge or eb.Bridge(max_sessions=4, max_handshakes=2)
        self._tls = [tls] if isinstance(tls, ClientTls) else list(tls or ())
        self._telemetry = telemetry
        self._suites = suites
        self._max_resumes = max_resumes
        self._established: Established | None = None
        self._target = target
        self._ring = ClientRing(ring, self._bridge, telemetry)
        self._dial()

    def _dial(self) -> None:
        """Makes the channel, which accepts exactly one certificate, and the calls on it."""
        pin = self._tls[0] if self._tls else None
        self._channel = (
            grpc.secure_channel(self._target, pin.credentials(), options=(*CHANNEL_OPTIONS, *pin.options()))
            if pin
            else grpc.insecure_channel(self._target, options=CHANNEL_OPTIONS)
        )
        self._attest = att_grpc.AttestationStub(self._channel).Attest
        self._page = self._channel.unary_unary(
            _SERVICE + "TransferPage", pb.TransferPageRequest.SerializeToString, pb.TransferPageResponse.FromString
        )
        self._pages = self._channel.stream_stream(
            _SERVICE + "TransferPages", codec.encode, pb.TransferPagesResponse.FromString
        )
        self._open_ring: OpenRing = self._channel.unary_unary(
            _SERVICE + "OpenRing", pb.OpenRingRequest.SerializeToString, pb.OpenRingResponse.FromString
        )
        self._get = self._channel.unary_stream(
            _SERVICE + "GetRegion", pb.GetRegionRequest.SerializeToString, codec.decode_region
        )
        self._verify = self._channel.unary_unary(
            _SERVICE + "VerifyRegion", pb.VerifyRegionRequest.SerializeToString, pb.VerifyRegionResponse.FromString
        )

    def _next_pin(self) -> None:
        """The server shows another certificate than the one this channel accepts: the next pinned one is tried."""
        self._tls = [*self._tls[1:], self._tls[0]]
        self._channel.close()
        self._dial()

    @property
    def bridge_info(self) -> eb.BridgeInfo:
        """Which memory and which AES-GCM kernel hold and seal this client's pages."""
        return self._bridge.info

    # ---- attest -------------------------------------------------------------------

    @property
    def session(self) -> Established:
        """The live session; attests when there is none. Raises HandshakeError."""
        if self._established is None:
            self._established = self.attest()
        return self._established

    def attest(self) -> Established:
        """Runs one mutual handshake, again when the server says when, or has another pinned certificate.

        Raises HandshakeError with the server's or this side's reason.
        """
        retries, pins_left = Retries(self._max_resumes), len(self._tls) - 1
        while True:
            try:
                return self._attest_once()
            except PagegateError as error:
                if pins_left > 0 and error.reason in _ANOTHER_PIN:
                    pins_left -= 1
                    self._next_pin()
                elif error.retry_after is None or not retries.pause(error):
                    raise

    def _attest_once(self) -> Established:
        self._drop_session()
        started = time.monotonic()
        handshake = ClientHandshake(
            self._bridge,
            self._platform,
            self._appraiser,
            self._regions,
            tls_binding=self._tls[0].binding if self._tls else b"",
            suites=self._suites,
        )
        with self._telemetry.span("pagegate.client.attest") as span:
            try:
                with call_span(self._telemetry, "pagegate.v1.Attestation/Attest", "client"):
                    self._established = self._run_handshake(handshake)
            except PagegateError as error:
                span.refused(error.reason)
                raise
            finally:
                handshake.close()
            self._telemetry.record(
                "pagegate.handshake.duration",
                time.monotonic() - started,
                {"pagegate.role": "client", "pagegate.outcome": "ok"},
            )
        return self._established

    def _run_handshake(self, handshake: ClientHandshake) -> Established:
        outgoing: queue.SimpleQueue[att.AttestRequest | None] = queue.SimpleQueue()
        outgoing.put(att.AttestRequest(client_hello=handshake.hello()))
        call = self._attest(
            iter(outgoing.get, None),
            timeout=HANDSHAKE_TIMEOUT_S,
            metadata=self._telemetry.metadata(),
            wait_for_ready=False,
        )
        try:
            answer = _next(call, "server_evidence").server_evidence
            proof = handshake.prove(answer.server_hello, answer.evidence)
            outgoing.put(
                att.AttestRequest(
                    client_evidence=att.ClientEvidence(evidence=proof.evidence, client_finished=proof.finished)
                )
            )
            finished = _next(call, "server_finished").server_finished
            established = handshake.establish(finished.parameters, finished.server_finished)
            outgoing.put(None)
            _let_end(call)
            return established
        except grpc.RpcError as error:
            raise from_rpc_error(error, HandshakeError) from error
        finally:
            outgoing.put(None)
            call.cancel()

    # ---- send -----------------------------------------------------------------------

    def send(
        self,
        region: str,
        source: Source | FileSource | Buffer,
        *,
        first_gpa: int | None = None,
        mode: str = "replace",
        progress: Progress | None = None,
    ) -> Sent:
        """Sends pages as one snapshot and returns when it is visible.

        `mode`: "replace" (pages not sent become zero) or "delta" (they stay). A broken stream is resumed from
        the last acknowledged batch, after a new handshake where the session is gone. Raises TransferError.
        """
        if mode not in ("replace", "delta"):
            raise ConfigError("MODE", f"transfer mode {mode!r} is not 'replace' or 'delta'")
        whole = isinstance(source, FileSource) or (hasattr(source, "pages") and hasattr(source, "read"))
        pages = source if whole else BufferSource(source)  # type: ignore[arg-type]
        started = time.monotonic()
        with self._telemetry.span("pagegate.client.send", {"pagegate.region": region}) as span:

            def snapshot() -> tuple[int, int, int]:
                sender = Sender(
                    self._bridge,
                    self._granted(region, AccessMode.WRITE),
                    pages,  # type: ignore[arg-type]
                    first_gpa=first_gpa,
                    delta=mode == "delta",
                    progress=progress,
                )
                span.set({"pagegate.pages": sender.pages})
                try:
                    return sender.pages, *self._with_resume(sender, span.context)
                finally:
                    sender.close()

            try:
                try:
                    sent, generation, resumed = snapshot()
                except TransferError as error:
                    if error.reason != "TRANSFER_MISMATCH":
                        raise
                    # Committed, but the answer was lost together with the session whose key made the commit's MAC: under
                    # another session the two sides cannot compare what it was. Sent again it is a generation more.
                    sent, generation, resumed = snapshot()
            except PagegateError as error:
                span.refused(error.reason)
                raise
            span.set({"pagegate.generation": generation})
        return Sent(sent, generation, time.monotonic() - started, resumed)

    def _with_resume(self, sender: Sender, transfer: TraceContext | None) -> tuple[int, int]:
        retries = Retries(self._max_resumes)
        while True:
            try:
                return self._stream(sender, transfer), retries.made
            except PagegateError as error:
                # A channel that accepts another certificate than the server's looks like a server that is away; the
                # handshake tries the other pins.
                if error.reason in _REATTEST or (error.reason in _ANOTHER_PIN and len(self._tls) > 1):
                    self._drop_session()
                elif error.reason not in _RESUMABLE and error.retry_after is None:
                    raise
                if not retries.pause(error):
                    raise

    @property
    def ring_in_use(self) -> bool:
        """True when pages go through shared memory."""
        return self._ring.in_use

    def _stream(self, sender: Sender, transfer: TraceContext | None) -> int:
        established = self.session
        with call_span(self._telemetry, _SERVICE[1:] + "TransferPages", "client") as span:
            return self._streamed(sender, established, Batches(self._telemetry, "seal", span.context, transfer))

    def _streamed(self, sender: Sender, established: Established, sealed: SealHook) -> int:
        session = established.session
        ring = self._ring.of(established, self._open_ring)
        if sender.region != established.regions.get(sender.region.name):
            raise TransferError("REGION_NOT_GRANTED", f"region {sender.region.name} changed since the transfer began")
        failure: list[BaseException] = []
        begun: queue.SimpleQueue[bool] = queue.SimpleQueue()
        mode = pb.TRANSFER_MODE_DELTA if sender.delta else pb.TRANSFER_MODE_REPLACE

        def requests() -> Iterator[pb.TransferPagesRequest | Batch]:
            try:
                yield pb.TransferPagesRequest(
                    begin=pb.TransferBegin(
                        session_id=established.session_id,
                        transfer_id=sender.transfer_id,
                        region=sender.region.number,
                        expected_pages=sender.pages,
                        mode=mode,
                        mac=sender.begin_mac(session, mode),
                    )
                )
                if not begun.get():
                    return
                count = -(-sender.pages // established.limits.max_batch_pages)
                for number, records in sender.batches(established, sealed, ring):
                    if records is not None:
                        yield Batch(records, number)
                    count = number + 1
                if count * established.limits.max_batch_pages >= sender.pages and not failure:
                    yield pb.TransferPagesRequest(
                        commit=pb.TransferCommit(pages=sender.pages, mac=sender.commit(session))
                    )
            except PagegateError as error:
                failure.append(error)
                call.cancel()

        carry = self._pages if ring is None else ring.pages
        call = carry(requests(), metadata=self._telemetry.metadata())
        try:
            for response in call:
                step = response.WhichOneof("step")
                if step == "begun":
                    sender.resume(response.begun.resume_at_batch, established.limits.max_batch_pages)
                    begun.put(True)
                elif step == "ack":
                    sender.acknowledged(established, response.ack.batches, response.ack.receipt)
                elif step == "committed":
                    sender.committed(session, response.committed.generation, response.committed.receipt)
                    if not isinstance(call, RingCall):
                        _let_end(call)
                    return int(response.committed.generation)
            raise TransferError("TRANSFER_TRUNCATED", "the server ended the stream before it committed")
        except grpc.RpcError as error:
            if failure:
                raise failure[0] from error
            raise from_rpc_error(error) from error
        except PagegateError as error:
            # A server closes the ring of a transfer that it refuses. What is resumed goes on by gRPC.
            self._ring.drop(ask_again=error.reason not in _RESUMABLE)
            raise (failure[0] if failure and error.reason.startswith("RING_") else error) from None
        finally:
            sender.stop()
            begun.put(False)
            call.cancel()

    def send_page(self, region: str, gpa: int, page: Buffer) -> int:
        """Writes one 4096-byte page at a guest-physical address; returns the region's new generation."""
        view = memoryview(page).cast("B")
        if len(view) != eb.PAGE_SIZE:
            raise TransferError("LENGTH", f"a page is 4096 bytes; {len(view)} were given")

        def call() -> int:
            granted = self._granted(region, AccessMode.WRITE)
            session = self.session
            with transfer_faults():
                record, _ = session.session.seal(None, region=granted.number, first_gpa=gpa, plain=view)
            with call_span(self._telemetry, _SERVICE[1:] + "TransferPage", "client"):
                response = self._page(
                    pb.TransferPageRequest(session_id=session.session_id, record=record),
                    metadata=self._telemetry.metadata(),
                )
            with transfer_faults():
                session.session.check_mac(
                    eb.MacPurpose.RECEIPT, macs.page(record[-eb.TAG_SIZE :], response.generation), response.receipt
                )
            return int(response.generation)

        with self._telemetry.span("pagegate.client.send", {"pagegate.region": region}):
            return self._once_more(call)

    # ---- read -----------------------------------------------------------------------

    def read(self, region: str, *, progress: Progress | None = None) -> tuple[bytearray, Read]:
        """Reads a region's committed generation into memory, every page verified."""
        with self._telemetry.span("pagegate.client.receive", {"pagegate.region": region}):
            return self._once_more(lambda: self._read(region, progress))

    def _read(self, region: str, progress: Progress | None) -> tuple[bytearray, Read]:
        granted = self._granted(region, AccessMode.READ)
        established = self.session
        session = established.session
        transfer_id = self._bridge.random(macs.TRANSFER_ID_SIZE)
        request = pb.GetRegionRequest(
            session_id=established.session_id,
            region=granted.number,
            first_gpa=granted.base_gpa,
            pages=granted.pages,
            transfer_id=transfer_id,
            mac=session.mac(
                eb.MacPurpose.TRANSFER, macs.get(transfer_id, granted.number, granted.base_gpa, granted.pages)
            ),
        )
        target = bytearray(granted.pages * eb.PAGE_SIZE)
        generation = -1
        with (
            call_span(self._telemetry, _SERVICE[1:] + "GetRegion", "client"),
            transfer_faults(),
            self._bridge.transfer(
                transfer_id, region=granted.number, base_gpa=granted.base_gpa, pages=granted.pages
            ) as transfer,
        ):
            transfer.target_memory(target)
            for message in self._get(request, metadata=self._telemetry.metadata()):
                if isinstance(message, Batch):
                    session.open(transfer, message.records)
                    if progress is not None:
                        progress(transfer.pages, granted.pages)
                elif message.WhichOneof("step") == "info":
                    info = message.info
                    session.check_mac(
                        eb.MacPurpose.RECEIPT,
                        macs.info(transfer_id, info.base_gpa, info.pages, info.generation),
                        info.mac,
                    )
                    generation = info.generation
                elif message.end.pages != granted.pages or transfer.pages != granted.pages:
                    raise TransferError(
                        "TRANSFER_INCOMPLETE", f"{transfer.pages} of {granted.pages} pages came; nothing is returned"
                    )
                else:
                    session.check_commit_mac(transfer, message.end.mac)
                    if generation < 0:
                        raise TransferError("OUT_OF_ORDER", "the server sent no region info")
                    return target, Read(granted.pages, granted.base_gpa, generation)
        raise TransferError("TRANSFER_TRUNCATED", "the server ended the read before its end; nothing is returned")

    # ---- verify ---------------------------------------------------------------------

    def verify_region(self, region: str) -> RegionCheck:
        """Has the server check the region's committed pages against their MACs; needs a grant to read it.

        Raises TransferError REGION_UNPROTECTED when it keeps none.
        """
        with self._telemetry.span("pagegate.client.verify", {"pagegate.region": region}, kind="client"):
            return self._once_more(lambda: self._verify_region(region))

    def _verify_region(self, region: str) -> RegionCheck:
        granted = self._granted(region, AccessMode.READ)
        established = self.session
        session = established.session
        nonce = self._bridge.random(macs.NONCE_SIZE)
        request = pb.VerifyRegionRequest(
            session_id=established.session_id,
            region=granted.number,
            first_gpa=granted.base_gpa,
            pages=granted.pages,
            nonce=nonce,
            mac=session.mac(eb.MacPurpose.CONTROL, macs.verify(nonce, granted.number, granted.base_gpa, granted.pages)),
        )
        answer = self._verify(request, metadata=self._telemetry.metadata())
        bad = tuple((r.first_gpa, r.pages) for r in answer.bad)
        with transfer_faults():
            session.check_mac(
                eb.MacPurpose.CONTROL,
                macs.verified(nonce, answer.generation, answer.pages, answer.bad_pages, bad),
                answer.mac,
            )
        if answer.pages != granted.pages:
            raise TransferError("TRANSFER_INCOMPLETE", f"the server checked {answer.pages} of {granted.pages} pages")
        return RegionCheck(answer.generation, answer.pages, answer.bad_pages, bad)

    # ---- shared -----------------------------------------------------------------------

    def _once_more(self, call: Callable[[], _T]) -> _T:
        """Runs a call, once more after a new handshake when the session has ended, and when the server says when."""
        retries, attested = Retries(self._max_resumes), False
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                typed = from_rpc_error(error)
                ended = typed.reason in _REATTEST and not attested
                if not ended and (typed.retry_after is None or not retries.pause(typed)):
                    raise typed from error
                if ended:
                    attested = True
                    self._drop_session()

    def _granted(self, name: str, mode: AccessMode) -> GrantedRegion:
        region = self.session.regions.get(name)
        if region is None or not region.mode.allows(mode):
            raise TransferError(
                "REGION_NOT_GRANTED",
                f"this client did not ask to {mode.value} region {name!r}; it asked for "
                f"{', '.join(f'{n} ({m.value})' for n, m in self._regions.items()) or 'none'}",
            )
        return region

    def _drop_session(self) -> None:
        self._ring.drop(ask_again=True)
        if self._established is not None:
            self._established.session.close()
            self._established = None

    def close(self) -> None:
        """Ends the session and zeroises its keys."""
        self._drop_session()
        self._channel.close()
        if self._owns_bridge:
            self._bridge.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _let_end(call: grpc.Call) -> None:
    """Lets the server end a call that has done its work: cancelled, it would count among its failures."""
    ended = threading.Event()
    if call.add_callback(ended.set):
        ended.wait(_END_WITHIN_S)


def _next(call: Iterator[att.AttestResponse], step: str) -> att.AttestResponse:
    response = next(call, None)
    if response is None:
        raise HandshakeError("HANDSHAKE_TRUNCATED", f"the server ended the handshake before its {step}")
    if response.WhichOneof("step") != step:
        raise HandshakeError("OUT_OF_ORDER", f"expected {step}, the server sent {response.WhichOneof('step')}")
    return response
