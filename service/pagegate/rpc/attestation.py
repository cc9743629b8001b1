"""The Attestation service: thin around the server's handshake state machine."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import grpc

from pagegate.errors import HandshakeError, PagegateError
from pagegate.handshake.appraise import EvidenceRejectedError
from pagegate.handshake.model import HANDSHAKE_TIMEOUT_S, Established
from pagegate.handshake.server import ServerHandshake
from pagegate.rpc import errors
from pagegate.rpc.events import Observer, ServerEvent, trace_id
from pagegate.rpc.spans import call_span
from pagegate.telemetry import Span, Tracing
from pagegate.transfer.session import SessionTable
from pagegate.v1 import attestation_pb2 as pb
from pagegate.v1 import attestation_pb2_grpc as pb_grpc

_log = logging.getLogger(__name__)
METHOD = "pagegate.v1.Attestation/Attest"


class AttestationServicer(pb_grpc.AttestationServicer):
    """Runs one handshake a stream, bounded in time and number."""

    def __init__(
        self,
        new_handshake: Callable[[], ServerHandshake],
        sessions: SessionTable,
        telemetry: Tracing,
        observer: Observer,
        *,
        max_handshakes: int,
        timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        self._new_handshake = new_handshake
        self._sessions = sessions
        self._telemetry = telemetry
        self._observer = observer
        self._lock = threading.Lock()
        self._live = 0
        self._max_handshakes = max_handshakes
        self._timeout_s = timeout_s

    @property
    def live(self) -> int:
        """Handshakes under way."""
        return self._live

    def Attest(  # noqa: N802 - gRPC names
        self, request_iterator: Iterator[pb.AttestRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.AttestResponse]:
        peer = context.peer()
        started = time.monotonic()
        parent = self._telemetry.extract(context.invocation_metadata())
        try:
            with call_span(self._telemetry, METHOD, "server", parent) as span:
                try:
                    self._claim_slot()
                    try:
                        yield from self._handshake(_Steps(request_iterator, self._timeout_s), peer, started)
                    finally:
                        self._free_slot()
                except PagegateError as error:
                    self._took(started, "refused")
                    span.set(_checks(error))
                    span.refused(error.reason)
                    self._refused(peer, error, span)
                    raise
        except PagegateError as error:
            errors.abort(context, error)

    def _took(self, started: float, outcome: str) -> None:
        labels = {"pagegate.role": "server", "pagegate.outcome": outcome}
        self._telemetry.record("pagegate.handshake.duration", time.monotonic() - started, labels)

    def _claim_slot(self) -> None:
        self._sessions.check_room()
        with self._lock:
            if self._live >= self._max_handshakes:
                raise HandshakeError(
                    "TOO_MANY_HANDSHAKES",
                    f"{self._max_handshakes} handshakes are already under way; retry in a moment",
                    retry_after=0.2,
                )
            self._live += 1

    def _free_slot(self) -> None:
        with self._lock:
            self._live -= 1

    def _handshake(self, steps: _Steps, peer: str, started: float) -> Iterator[pb.AttestResponse]:
        handshake = self._new_handshake()
        try:
            hello = steps.next("client_hello").client_hello
            answer = handshake.answer(hello)
            yield pb.AttestResponse(
                server_evidence=pb.ServerEvidence(server_hello=answer.server_hello, evidence=answer.evidence)
            )
            proof = steps.next("client_evidence").client_evidence
            grant, established = handshake.confirm(proof.evidence, proof.client_finished)
            # The log first: a grant that cannot be recorded is not given.
            self._accepted(peer, established)
            self._sessions.add(established, peer)
            # Before the last message: a client may go away as soon as it has that.
            self._took(started, "ok")
            yield pb.AttestResponse(
                server_finished=pb.ServerFinished(parameters=grant.parameters, server_finished=grant.finished)
            )
        finally:
            handshake.close()

    def _accepted(self, peer: str, established: Established) -> None:
        regions = ", ".join(f"{r.name}:{r.mode.value}" for r in established.regions.values())
        _log.info(
            "accepted %s as %s%s for %s",
            peer,
            established.peer.identity,
            " (SIMULATED evidence, proves nothing)" if established.simulated else "",
            regions,
        )
        claims = established.peer.claims
        self._observer(
            ServerEvent(
                "grant",
                established.peer.identity or peer,
                {
                    "peer": peer,
                    "regions": regions,
                    "simulated": established.simulated,
                    "measurement": claims.measurement.hex() if claims else "",
                    "session": established.session_id.hex(),
                },
            )
        )

    def _refused(self, peer: str, error: PagegateError, span: Span) -> None:
        _log.warning("refused %s: %s", peer, error)
        details: dict[str, str | int | bool] = {"peer": peer, "reason": error.reason, **error.metadata}
        failures = error.verdict.failures if isinstance(error, EvidenceRejectedError) else ()
        if failures:
            details["failures"] = "; ".join(
                f"{f.code} {f.field}: expected {f.expected}, found {f.found}" for f in failures
            )
        self._telemetry.count("pagegate.refusals", 1, {"pagegate.reason": error.reason, "pagegate.role": "server"})
        self._observer(ServerEvent("refusal", peer, details, error.message, failures, trace_id(span)))


def _checks(error: PagegateError) -> dict[str, Sequence[str]]:
    checks = error.metadata.get("checks")
    return {"pagegate.failures": checks.split(",")} if checks else {}


class _Steps:
    """The client's two messages, read in a thread of their own: gRPC's iterator blocks without a limit in time."""

    _COUNT = 2

    def __init__(self, requests: Iterator[pb.AttestRequest], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._arrived: queue.SimpleQueue[pb.AttestRequest | Exception | None] = queue.SimpleQueue()
        # Ends with the call at the latest: gRPC then raises into the iterator.
        threading.Thread(target=self._read, args=(requests,), name="pagegate-attest", daemon=True).start()

    def _read(self, requests: Iterator[pb.AttestRequest]) -> None:
        for _ in range(self._COUNT):
            try:
                request = next(requests, None)
            except Exception as error:
                # A bare Exception is what gRPC raises when the call ends or is cancelled.
                self._arrived.put(error)
                return
            self._arrived.put(request)
            if request is None:
                return

    def next(self, name: str) -> pb.AttestRequest:
        """The next message. Raises HandshakeError HANDSHAKE_TIMEOUT, HANDSHAKE_TRUNCATED or OUT_OF_ORDER."""
        try:
            request = self._arrived.get(timeout=max(0.0, self._deadline - time.monotonic()))
        except queue.Empty:
            raise HandshakeError(
                "HANDSHAKE_TIMEOUT",
                f"no {name} within the {self._timeout_s:g} s a handshake may take; start again",
                retry_after=1.0,
            ) from None
        if isinstance(request, Exception):
            raise HandshakeError("HANDSHAKE_TRUNCATED", f"the client went away before its {name}") from request
        if request is None:
            raise HandshakeError("HANDSHAKE_TRUNCATED", f"the client ended the stream before its {name}")
        if request.WhichOneof("step") != name:
            raise HandshakeError("OUT_OF_ORDER", f"expected {name}, the client sent {request.WhichOneof('step')}")
        return request
