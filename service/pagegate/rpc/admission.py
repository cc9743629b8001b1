"""Who is let in to a call, for how long, and what ends it: one interceptor before every service.

A call that is turned away gets a stable reason (google.rpc.ErrorInfo) and when to come again
(google.rpc.RetryInfo). docs/operate.md has the table.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from pagegate.errors import PagegateError, TransferError
from pagegate.rpc import errors
from pagegate.rpc.codec import Batch
from pagegate.rpc.events import Observer, ServerEvent, trace_id
from pagegate.rpc.flight import Flight
from pagegate.rpc.pace import FIRST_MESSAGE_S, Inbox, PaceLimits, Patience, Watchdog
from pagegate.rpc.spans import call_span
from pagegate.telemetry import Tracing

_log = logging.getLogger(__name__)
_OURS = "/pagegate.v1."
_ATTEST = "/pagegate.v1.Attestation/Attest"
_WATCH = "/grpc.health.v1.Health/Watch"
AUXILIARY_CALLS = 8
"""Health checks at once, and reflection calls at once: small, quick, and not to be starved by transfers."""
SPARE_CALLS = 16
"""Threads that tell calls over the limit so."""


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What a server has room for."""

    max_streams: int = 64
    max_bytes_in_flight: int = 256 << 20
    pace: PaceLimits = field(default_factory=PaceLimits)

    @property
    def threads(self) -> int:
        """Calls that may have a thread: admitted ones, health watchers, auxiliary ones, those being refused."""
        return 2 * self.max_streams + 3 * AUXILIARY_CALLS + SPARE_CALLS


class Gate:
    """The counters behind the interceptor, and whether the server is draining. Thread-safe."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self.limits = limits
        self.pace = limits.pace
        """How slow the peers of new calls may be; may be changed while calls run."""
        self.flight = Flight(limits.max_bytes_in_flight)
        self._lock = threading.Condition()
        self._live = 0
        self._auxiliary: dict[str, int] = {}
        self._finish_by: float | None = None

    @property
    def live(self) -> int:
        """Calls of pagegate's own services being served."""
        return self._live

    @property
    def draining(self) -> bool:
        """True when no new work is taken."""
        return self._finish_by is not None

    def drain(self, finish_s: float) -> None:
        """Takes no new work; running streams get `finish_s` seconds before they are told to go elsewhere."""
        with self._lock:
            if self._finish_by is None:
                self._finish_by = time.monotonic() + finish_s

    def wait_idle(self, timeout_s: float) -> bool:
        """True when no call is being served any more."""
        with self._lock:
            return self._lock.wait_for(lambda: self._live == 0, timeout_s)

    def check_finish(self) -> None:
        """Raises TransferError DRAINING when running streams have had their time."""
        if self._finish_by is not None and time.monotonic() >= self._finish_by:
            raise _draining()

    @contextmanager
    def admitted(self, method: str) -> Iterator[None]:
        """Counts a call for as long as it runs. Raises TransferError DRAINING or TOO_MANY_STREAMS."""
        ours = method.startswith(_OURS)
        with self._lock:
            if ours and self.draining:
                raise _draining()
            held = self._live if ours else self._auxiliary.get(method, 0)
            limit = self.limits.max_streams if ours or method == _WATCH else AUXILIARY_CALLS
            if held >= limit:
                raise TransferError(
                    "TOO_MANY_STREAMS", f"all {limit} calls of this kind are in use; retry in a moment", retry_after=0.5
                )
            self._count(method, ours=ours, by=1)
        try:
            yield
        finally:
            with self._lock:
                self._count(method, ours=ours, by=-1)
                self._lock.notify_all()

    def _count(self, method: str, *, ours: bool, by: int) -> None:
        if ours:
            self._live += by
        else:
            self._auxiliary[method] = self._auxiliary.get(method, 0) + by


def _draining() -> TransferError:
    return TransferError(
        "DRAINING",
        "this server is shutting down and takes no new work; go to another one, or retry when it is back. A transfer "
        "goes on from its last acknowledged batch where that is kept",
        retry_after=1.0,
    )


class Admission(grpc.ServerInterceptor):
    """Admits calls and paces their peers, both ways."""

    def __init__(
        self, gate: Gate, readers: Executor, watchdog: Watchdog, telemetry: Tracing, observer: Observer
    ) -> None:
        self._gate = gate
        self._readers = readers
        self._watchdog = watchdog
        self._telemetry = telemetry
        self._observer = observer

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler behind the gate. Every one takes a stream of requests, also a unary one (on the wire there
        is no difference): gRPC would otherwise wait for the one message, holding a thread, without a limit."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        coders = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(lambda r, c: self._stream(handler, method, r, c), *coders)
        return grpc.stream_unary_rpc_method_handler(lambda r, c: self._unary(handler, method, r, c), *coders)

    def _unary(self, handler: Any, method: str, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        with self._call(method, context), self._argument(handler, method, requests, context) as argument:
            return (handler.stream_unary or handler.unary_unary)(argument, context)

    def _stream(
        self, handler: Any, method: str, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        with self._call(method, context), self._argument(handler, method, requests, context) as argument:
            responses = (handler.stream_stream or handler.unary_stream)(argument, context)
            # A handshake is as short in what it sends as in what it takes.
            patience = Patience(self._gate.pace, first_s=FIRST_MESSAGE_S if method == _ATTEST else None)

            def late() -> None:
                error = patience.worn_out("does not read what it asked for")
                self._refused(method, context, error)
                _end(context, error)

            # A read is whole batches of this side's making: between two of them it can be told to go elsewhere.
            check = None if handler.request_streaming or method == _WATCH else self._gate.check_finish
            yield from self._watchdog.watch(self._accounted(responses, check), patience, _size, late)

    def _accounted(self, responses: Iterator[Any], check: Callable[[], None] | None) -> Iterator[Any]:
        """The responses, in flight for as long as the peer takes over them."""
        for response in responses:
            if check is not None:
                check()
            size = _pages(response)
            self._gate.flight.take(size)
            try:
                yield response
            finally:
                self._gate.flight.give(size)

    @contextmanager
    def _argument(
        self, handler: Any, method: str, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        patience = Patience(self._gate.pace, first_s=FIRST_MESSAGE_S)
        if method == _ATTEST:
            # A handshake is paced as a whole, by the service.
            yield requests
        elif not handler.request_streaming:
            yield self._one(requests, patience, context)
        else:
            inbox = Inbox(requests, self._readers, patience, self._gate.flight, _pages, self._check)
            try:
                yield inbox
            finally:
                inbox.close()

    def _one(self, requests: Iterator[Any], patience: Patience, context: grpc.ServicerContext) -> Any:
        """The message of a unary call. Read without another thread: a page on its own is about latency."""
        error = patience.worn_out("sent no message")
        with self._watchdog.waiting(patience, lambda: _end(context, error)) as wait:
            try:
                message = next(requests, None)
            except grpc.RpcError:
                # What gRPC raises when the call is cancelled, here or by the peer.
                message = None
        if wait.over:
            raise error
        if message is None:
            raise TransferError("MALFORMED_MESSAGE", "the call carries no message; send exactly one")
        return message

    def _check(self, message: object) -> None:
        """A draining server takes the commit that is under way, but no further batch."""
        if message is None or isinstance(message, Batch):
            self._gate.check_finish()

    @contextmanager
    def _call(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        """Admits a call. What ends here was not told to anybody yet: the services tell of what they end."""
        try:
            with self._gate.admitted(method):
                yield
        except PagegateError as error:
            parent = self._telemetry.extract(context.invocation_metadata())
            span_of_call = call_span(self._telemetry, method.removeprefix("/"), "server", parent)
            with suppress(PagegateError), span_of_call as span:
                span.refused(error.reason, error.message)
                self._refused(method, context, error, trace_id(span))
                raise
            errors.abort(context, error)

    def _refused(self, method: str, context: grpc.ServicerContext, error: PagegateError, trace: str = "") -> None:
        peer, name = context.peer(), method.rpartition("/")[2]
        _log.warning("%s from %s refused: %s", name, peer, error)
        self._telemetry.count("pagegate.refusals", 1, {"pagegate.reason": error.reason, "pagegate.role": "server"})
        self._observer(
            ServerEvent("refusal", peer, {"method": name, "reason": error.reason}, error.message, trace_id=trace)
        )


def _pages(message: Any) -> int:
    """Bytes of sealed pages: what is in flight. Other messages are small, and their number is bounded."""
    return len(message.records) if isinstance(message, Batch) else 0


def _size(message: Any) -> int:
    return _pages(message) or int(message.ByteSize())


def _end(context: grpc.ServicerContext, error: PagegateError) -> None:
    """Ends a call from another thread. gRPC's public `cancel` has no status; its call object does. Details that
    an aborted call could carry (ErrorInfo) cannot be sent here, so the message names the reason."""
    code = errors.STATUS_OF_REASON[error.reason]
    try:
        context._rpc_event.call.cancel(code.value[0], str(error))  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        context.cancel()
