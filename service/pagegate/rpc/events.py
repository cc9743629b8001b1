"""What a server tells its audit log and status page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pagegate.evidence.model import Failure
from pagegate.telemetry import Span


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One thing that happened. `details` never holds a secret or page data."""

    kind: str
    """"start" (a region was opened), "policy", "shadow", "verdict", "grant", "refusal", "commit",
    "read" or "rotation" (new endorsements or a new revocation list: all attest again)."""
    subject: str
    """Policy identity of the peer, or its address before it has one; the region's name of a "start"."""
    details: Mapping[str, str | int | bool] = field(default_factory=dict)
    message: str = ""
    """Of a refusal, for this side's operator: what, value, limit, what to do."""
    failures: tuple[Failure, ...] = ()
    """Of a refused appraisal: every check that did not hold."""
    trace_id: str = ""
    """32 hex digits of the trace it happened in; empty without telemetry."""


Observer = Callable[[ServerEvent], None]


def trace_id(span: Span) -> str:
    """The trace a span belongs to; empty without telemetry."""
    return span.context.trace_id if span.context else ""


def ignore(_event: ServerEvent) -> None:
    """The observer of a server that keeps no log."""
