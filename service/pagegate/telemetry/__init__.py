"""Three verbs for telling what happens: span, count, record."""

from pagegate.telemetry.api import NO_TELEMETRY, Span, TraceContext, Tracing

__all__ = ["NO_TELEMETRY", "Span", "TraceContext", "Tracing"]
