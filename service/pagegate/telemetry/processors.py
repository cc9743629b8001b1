"""What happens to a span of this process when it ends: kept, promoted, exported."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import partial
from typing import Final, cast

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags

from pagegate.telemetry import semconv
from pagegate.telemetry.api import Value
from pagegate.telemetry.records import EventRecord, SpanRecord, TraceRecorder

MAX_WAITING: Final = 4096
"""Spans of unsampled traces held back at most, in all; the oldest traces go first."""
MAX_PROMOTED: Final = 1024
"""Traces whose later spans are still let through."""


def to_record(span: ReadableSpan) -> SpanRecord:
    """The facts of a finished span."""
    context = cast(SpanContext, span.context)
    return SpanRecord(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=None if span.parent is None else f"{span.parent.span_id:016x}",
        name=span.name,
        kind=span.kind.name.lower(),
        service=str(span.resource.attributes.get("service.name", "")),
        start_ns=span.start_time or 0,
        end_ns=span.end_time or 0,
        attributes=cast("dict[str, Value]", dict(span.attributes or {})),
        events=tuple(
            EventRecord(event.name, event.timestamp, cast("dict[str, Value]", dict(event.attributes or {})))
            for event in span.events
        ),
        links=tuple(f"{link.context.span_id:016x}" for link in span.links),
        error=span.status.status_code is StatusCode.ERROR,
        message=span.status.description or "",
    )


class RecorderProcessor(SpanProcessor):
    """Gives every finished span to a TraceRecorder, sampled or not."""

    def __init__(self, recorder: TraceRecorder) -> None:
        self._recorder = recorder

    def on_end(self, span: ReadableSpan) -> None:
        """Called by the SDK when a span has ended."""
        detail = (
            span.kind is SpanKind.INTERNAL
            and span.parent is not None
            and span.status.status_code is not StatusCode.ERROR
        )
        trace_id = cast(SpanContext, span.context).trace_id
        self._recorder.add_later(f"{trace_id:032x}", partial(to_record, span), detail=detail)


class RefusalKeeper(SpanProcessor):
    """Head sampling that never loses a refusal.

    Sampled spans go straight on. Others (the sampler marks them record-only) wait here, bounded;
    when one of them carries a refusal or an error, what is known of its trace goes on marked as
    sampled, and so do its later spans.
    """

    def __init__(self, following: SpanProcessor, max_waiting: int = MAX_WAITING) -> None:
        self._following = following
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._waiting: OrderedDict[int, list[ReadableSpan]] = OrderedDict()
        self._waiting_spans = 0
        self._promoted: OrderedDict[int, None] = OrderedDict()

    def on_end(self, span: ReadableSpan) -> None:
        """Called by the SDK when a span has ended."""
        context = cast(SpanContext, span.context)
        if context.trace_flags.sampled:
            self._following.on_end(span)
            return
        for kept in self._release(context.trace_id, span):
            self._following.on_end(_as_sampled(kept))

    def shutdown(self) -> None:
        """Stops what follows."""
        self._following.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flushes what follows; what waits keeps waiting."""
        return self._following.force_flush(timeout_millis)

    def _release(self, trace_id: int, span: ReadableSpan) -> list[ReadableSpan]:
        """The spans that may go on now that `span` has ended."""
        with self._lock:
            if trace_id in self._promoted:
                self._promoted.move_to_end(trace_id)
                return [span]
            if _worth_keeping(span):
                released = self._waiting.pop(trace_id, [])
                self._waiting_spans -= len(released)
                self._promoted[trace_id] = None
                if len(self._promoted) > MAX_PROMOTED:
                    self._promoted.popitem(last=False)
                return [*released, span]
            self._waiting.setdefault(trace_id, []).append(span)
            self._waiting.move_to_end(trace_id)
            self._waiting_spans += 1
            while self._waiting_spans > self._max_waiting:
                self._forget_oldest()
            return []

    def _forget_oldest(self) -> None:
        oldest = next(iter(self._waiting))
        spans = self._waiting[oldest]
        spans.pop(0)
        self._waiting_spans -= 1
        if not spans:
            del self._waiting[oldest]


def _worth_keeping(span: ReadableSpan) -> bool:
    return span.status.status_code is StatusCode.ERROR or any(event.name == semconv.REFUSED for event in span.events)


def _as_sampled(span: ReadableSpan) -> ReadableSpan:
    context = cast(SpanContext, span.context)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(
            context.trace_id,
            context.span_id,
            is_remote=context.is_remote,
            trace_flags=TraceFlags(context.trace_flags | TraceFlags.SAMPLED),
            trace_state=context.trace_state,
        ),
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
