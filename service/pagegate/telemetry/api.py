"""The seam other modules call: three verbs (span, count, record) and nothing of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

Value = str | bool | int | float | Sequence[str]
"""What an attribute may hold. Bytes never: a secret or page data would be bytes."""

Attributes = Mapping[str, Value]
SpanKind = Literal["internal", "server", "client", "producer", "consumer"]
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Where in which trace something happens: for `parent=` and `links=`, also across threads."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    sampled: bool
    trace_state: str = ""
    """W3C tracestate, as received."""
    remote: bool = False
    """True when it came from another process."""


class Span(Protocol):
    """A hop that is being timed."""

    @property
    def context(self) -> TraceContext | None:
        """For `parent=` of work in another thread, and for `links=`; None without telemetry."""
        ...

    def set(self, attributes: Attributes) -> None:
        """Adds or replaces attributes."""
        ...

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Notes that something happened now; the event "refused" keeps the whole trace."""
        ...

    def refused(self, reason: str, message: str = "") -> None:
        """The gate said no: the event "refused" and the status error, in one call."""
        ...

    def error(self, reason: str, message: str = "") -> None:
        """The hop failed. An exception that leaves the `with` block is noted by itself."""
        ...


class Tracing(Protocol):
    """Three verbs and their plumbing. Thread-safe."""

    def span(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        kind: SpanKind = "internal",
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
    ) -> AbstractContextManager[Span]:
        """Times the `with` block as a hop, a child of `parent`, else of the current span."""
        ...

    def timed_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        nanoseconds: int,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
    ) -> None:
        """A child of `parent`, else of the current span, that ended now and took `nanoseconds`, measured elsewhere (in C)."""
        ...

    def count(self, name: str, value: int = 1, attributes: Attributes | None = None) -> None:
        """Adds to a counter."""
        ...

    def record(self, name: str, value: float, attributes: Attributes | None = None) -> None:
        """Adds to a histogram (in its unit, see docs/telemetry.md) or sets a gauge."""
        ...

    def metadata(self) -> Metadata:
        """W3C traceparent and tracestate of the current span, for gRPC metadata. Never baggage."""
        ...

    def extract(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> TraceContext | None:
        """The caller's span from gRPC metadata; None when there is none or it is malformed."""
        ...

    def flush(self, timeout: float = 5.0) -> bool:
        """Sends what is buffered, within about `timeout` seconds; False when some may be lost."""
        ...

    def shutdown(self) -> None:
        """Flushes and stops; later calls do nothing."""
        ...
