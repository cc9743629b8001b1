"""A trace for a person: a tree with the time of each hop and a bar, and the same as data."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from typing import TextIO

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pagegate.telemetry.processors import to_record
from pagegate.telemetry.records import SpanNode, SpanRecord, TraceRecord

BAR_CELLS = 20
TIME_CELLS = 7
GUIDES_WIDE = 60
"""A peer chooses how deep its trace is: deeper hops are drawn at this depth."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MAX_WAITING_TRACES = 64
_MAX_SPANS = 512
_FOLD_ABOVE = 3


def trace_table(trace: TraceRecord) -> Table:
    """The trace as a rich table: hop, who, time, bar on the trace's time line."""
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", expand=True)
    table.add_column("hop", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("process", style="dim", no_wrap=True, min_width=max(7, *map(len, trace.services), 0))
    table.add_column("time", justify="right", no_wrap=True, min_width=TIME_CELLS)
    table.add_column("", no_wrap=True, min_width=BAR_CELLS)
    for guide, span in _lines(trace.roots()):
        label = Text(guide, style="dim") + Text(span.name, style="red" if span.error else "")
        if span.error:
            label.append(f" ✗ {span.attributes.get('error.type', 'error')}", style="bold red")
        table.add_row(label, span.service, human_time(span.duration_ns), _bar(trace, span))
    if trace.dropped:
        table.add_row(Text(f"… and {trace.dropped} more spans, not kept", style="dim"), "", "", "")
    return table


def print_trace(trace: TraceRecord, console: Console) -> None:
    """Prints one trace with its heading."""
    console.print(
        Text.assemble(
            ("trace ", "dim"),
            (trace.trace_id, "bold"),
            ("  " + human_time(trace.duration_ns), "bold"),
            ("  " + " → ".join(trace.services), "dim"),
        )
    )
    console.print(trace_table(trace))


def trace_json(trace: TraceRecord) -> dict[str, object]:
    """The same as data; times in nanoseconds from the start of the trace."""
    return {
        "trace_id": trace.trace_id,
        "duration_ns": trace.duration_ns,
        "services": list(trace.services),
        "refusals": list(trace.refusals),
        "dropped_spans": trace.dropped,
        "spans": [
            {
                "span_id": span.span_id,
                "parent_id": span.parent_id,
                "depth": depth,
                "name": span.name,
                "kind": span.kind,
                "service": span.service,
                "start_ns": span.start_ns - trace.start_ns,
                "duration_ns": span.duration_ns,
                "error": span.error,
                "message": span.message,
                "attributes": {key: list(v) if isinstance(v, tuple) else v for key, v in span.attributes.items()},
                "events": [
                    {
                        "name": event.name,
                        "at_ns": event.at_ns - trace.start_ns,
                        "attributes": {
                            key: list(v) if isinstance(v, tuple) else v for key, v in event.attributes.items()
                        },
                    }
                    for event in span.events
                ],
                "links": list(span.links),
            }
            for root in trace.roots()
            for depth, span in root.walk()
        ],
    }


def human_time(nanoseconds: int) -> str:
    """Three digits and a unit."""
    for unit, size in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6)):
        if nanoseconds / size < 999.5:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds / 1e9:.2f} s"


class TreePrinter(SpanProcessor):
    """Prints each trace of this process when its local root ends. Bounded; thread-safe."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, list[SpanRecord]] = OrderedDict()

    def on_end(self, span: ReadableSpan) -> None:
        """Called by the SDK when a span has ended."""
        record = to_record(span)
        with self._lock:
            spans = self._waiting.setdefault(record.trace_id, [])
            if len(spans) < _MAX_SPANS or span.parent is None or span.parent.is_remote:
                spans.append(record)
            while len(self._waiting) > _MAX_WAITING_TRACES:
                self._waiting.popitem(last=False)
            if span.parent is not None and not span.parent.is_remote:
                return
            done = TraceRecord(record.trace_id, tuple(self._waiting.pop(record.trace_id, spans)))
            print_trace(done, self._console)


def _lines(roots: tuple[SpanNode, ...]) -> list[tuple[str, SpanRecord]]:
    """Every span with the guides that draw its place in the tree."""
    lines: list[tuple[str, SpanRecord]] = []
    pending: list[tuple[SpanNode, str, str]] = [(root, "", "") for root in reversed(roots)]
    while pending:
        node, own, below = pending.pop()
        lines.append((own, node.span))
        children = _fold(node.children)
        last = len(children) - 1
        for index in range(last, -1, -1):
            deeper = below if len(below) < GUIDES_WIDE else below[:-3]
            fork, rest = ("└─ ", "   ") if index == last else ("├─ ", "│  ")
            pending.append((children[index], deeper + fork, deeper + rest))
    return lines


def _fold(children: tuple[SpanNode, ...]) -> tuple[SpanNode, ...]:
    """Many like leaves (a batch each) as one line: their number, and the sum of their times."""
    groups: dict[tuple[str, str], list[SpanNode]] = {}
    for child in children:
        if not child.children and not child.span.error:
            groups.setdefault((child.span.name, child.span.service), []).append(child)
    folded: list[SpanNode] = []
    for child in children:
        group = groups.get((child.span.name, child.span.service), [])
        if len(group) <= _FOLD_ABOVE or child.children or child.span.error:
            folded.append(child)
        elif child is group[0]:
            busy = sum(one.span.duration_ns for one in group)
            span = replace(
                child.span, name=f"{child.span.name} × {len(group)} (in sum)", end_ns=child.span.start_ns + busy
            )
            folded.append(SpanNode(span, ()))
    return tuple(folded)


def _bar(trace: TraceRecord, span: SpanRecord) -> Text:
    """When the hop began and how long it took, on the trace's time line."""
    whole = max(1, trace.duration_ns)
    begin = (span.start_ns - trace.start_ns) * BAR_CELLS * 8 // whole
    length = max(1, span.duration_ns * BAR_CELLS * 8 // whole)
    lead = min(begin // 8, BAR_CELLS - 1)
    full, part = divmod(min(length, (BAR_CELLS - lead) * 8), 8)
    cells = "█" * full + (_EIGHTHS[part] if part else "")
    return Text(" " * lead + cells.ljust(BAR_CELLS - lead), style="red" if span.error else "cyan")
