"""Finished spans as plain facts, and a bounded memory of recent traces."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pagegate.telemetry import semconv
from pagegate.telemetry.api import Value


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened inside a span."""

    name: str
    at_ns: int
    """Unix time, nanoseconds."""
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """One finished hop, of this process or of another."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    kind: str
    service: str
    start_ns: int
    """Unix time, nanoseconds."""
    end_ns: int
    attributes: Mapping[str, Value] = field(default_factory=dict)
    events: tuple[EventRecord, ...] = ()
    links: tuple[str, ...] = ()
    """Span ids (16 hex digits) this hop refers to."""
    error: bool = False
    message: str = ""
    """The status message of a hop that failed."""

    @property
    def duration_ns(self) -> int:
        """Nanoseconds; never negative, though clocks may step."""
        return max(0, self.end_ns - self.start_ns)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Reason codes of the refusals noted in this hop."""
        return tuple(
            str(event.attributes.get("pagegate.reason", "")) for event in self.events if event.name == semconv.REFUSED
        )


@dataclass(frozen=True, slots=True)
class SpanNode:
    """A hop and what it waited for, in order of start."""

    span: SpanRecord
    children: tuple[SpanNode, ...]

    def walk(self, depth: int = 0) -> Iterator[tuple[int, SpanRecord]]:
        """Depth and span, parents first."""
        pending: list[tuple[int, SpanNode]] = [(depth, self)]
        while pending:
            level, node = pending.pop()
            yield level, node.span
            pending.extend((level + 1, child) for child in reversed(node.children))


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """All known spans of one trace."""

    trace_id: str
    spans: tuple[SpanRecord, ...]
    dropped: int = 0
    """Spans that were forgotten because the trace was too long to keep."""

    @property
    def start_ns(self) -> int:
        """Unix time of the first span, nanoseconds."""
        return min((span.start_ns for span in self.spans), default=0)

    @property
    def end_ns(self) -> int:
        """Unix time of the last end, nanoseconds."""
        return max((span.end_ns for span in self.spans), default=0)

    @property
    def duration_ns(self) -> int:
        """From the first start to the last end, nanoseconds."""
        return max(0, self.end_ns - self.start_ns)

    @property
    def services(self) -> tuple[str, ...]:
        """Who took part, in order of appearance."""
        ordered = sorted(self.spans, key=lambda span: span.start_ns)
        return tuple(dict.fromkeys(span.service for span in ordered))

    @property
    def refusals(self) -> tuple[str, ...]:
        """Reason codes of every refusal in the trace, once each."""
        return tuple(dict.fromkeys(reason for span in self.spans for reason in span.refusals))

    def roots(self) -> tuple[SpanNode, ...]:
        """The spans as trees. A span whose parent is not known here is a root; a hostile cycle of
        parents is cut, so every span appears exactly once."""
        known = {span.span_id: span for span in self.spans}
        children: dict[str, list[SpanRecord]] = {}
        tops: list[SpanRecord] = []
        for span in known.values():
            if span.parent_id is not None and span.parent_id in known and span.parent_id != span.span_id:
                children.setdefault(span.parent_id, []).append(span)
            else:
                tops.append(span)
        placed: set[str] = set()
        nodes = [_node(top, children, placed) for top in sorted(tops, key=_order)]
        for span in sorted(known.values(), key=_order):  # only spans of a cycle of parents are left
            if span.span_id not in placed:
                nodes.append(_node(span, children, placed))
        return tuple(nodes)


def _order(span: SpanRecord) -> tuple[int, int, str]:
    return span.start_ns, -span.end_ns, span.span_id


def _node(top: SpanRecord, children: Mapping[str, Sequence[SpanRecord]], placed: set[str]) -> SpanNode:
    """Builds the tree below `top` without recursion: a peer chooses how deep its trace is."""
    order: list[SpanRecord] = []
    below: dict[str, list[SpanRecord]] = {}
    pending = [top]
    placed.add(top.span_id)
    while pending:
        span = pending.pop()
        order.append(span)
        fresh = [child for child in sorted(children.get(span.span_id, ()), key=_order) if child.span_id not in placed]
        placed.update(child.span_id for child in fresh)
        below[span.span_id] = fresh
        pending.extend(fresh)
    built: dict[str, SpanNode] = {}
    for span in reversed(order):
        built[span.span_id] = SpanNode(span, tuple(built[child.span_id] for child in below[span.span_id]))
    return built[top.span_id]


class TraceSource(Protocol):
    """Anything that can show recent traces."""

    def traces(self) -> tuple[TraceRecord, ...]:
        """Newest first."""
        ...


@dataclass(slots=True)
class _Entry:
    """One span, made into a record only when somebody looks: most spans are forgotten unseen."""

    make: Callable[[], SpanRecord] | None
    detail: bool
    record: SpanRecord | None = None

    def get(self) -> SpanRecord:
        if self.record is None:
            assert self.make is not None
            self.record, self.make = self.make(), None
        return self.record


@dataclass(slots=True)
class _Kept:
    entries: list[_Entry] = field(default_factory=list)
    dropped: int = 0

    def trace(self, trace_id: str) -> TraceRecord:
        return TraceRecord(trace_id, tuple(entry.get() for entry in self.entries), self.dropped)

    def make_room(self) -> None:
        """The newest detail goes; without any, the oldest span."""
        newest_first = range(len(self.entries) - 1, -1, -1)
        del self.entries[next((i for i in newest_first if self.entries[i].detail), 0)]
        self.dropped += 1


class TraceRecorder:
    """Remembers the spans of the most recent traces. Bounded in traces and in spans a trace; thread-safe.

    In a trace that is too long, details (hops inside a process that went well) are forgotten before
    failures and entry points.
    """

    def __init__(self, max_traces: int = 64, max_spans: int = 512) -> None:
        if max_traces < 1 or max_spans < 1:
            raise ValueError("a TraceRecorder keeps at least one trace of at least one span")
        self._max_traces = max_traces
        self._max_spans = max_spans
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def add(self, span: SpanRecord) -> None:
        """Remembers one span; the trace longest without a new span is forgotten when there are too many."""
        detail = not span.error and span.parent_id is not None and span.kind == "internal"
        self._add(span.trace_id, _Entry(None, detail, span))

    def add_later(self, trace_id: str, make: Callable[[], SpanRecord], *, detail: bool) -> None:
        """Remembers one span that `make` turns into a record when it is looked at."""
        self._add(trace_id, _Entry(make, detail))

    def _add(self, trace_id: str, entry: _Entry) -> None:
        with self._lock:
            kept = self._kept.get(trace_id)
            if kept is None:
                kept = self._kept[trace_id] = _Kept()
                if len(self._kept) > self._max_traces:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(trace_id)
            if len(kept.entries) < self._max_spans:
                kept.entries.append(entry)
            elif entry.detail:
                kept.dropped += 1
            else:
                kept.make_room()
                kept.entries.append(entry)

    def traces(self) -> tuple[TraceRecord, ...]:
        """Newest first."""
        with self._lock:
            return tuple(kept.trace(trace_id) for trace_id, kept in reversed(self._kept.items()))

    def trace(self, trace_id: str) -> TraceRecord | None:
        """One trace by its 32 hex digits; None when it is not, or no longer, known."""
        with self._lock:
            kept = self._kept.get(trace_id)
            return None if kept is None else kept.trace(trace_id)
