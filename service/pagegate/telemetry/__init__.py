"""The one place that knows OpenTelemetry. Others call three verbs: `span`, `count` and `record`.

Take a `Tracing`; pass `NO_TELEMETRY` where none is wanted; make a real one with `Telemetry.start`
(imported on first use, so that naming `NO_TELEMETRY` does not load the SDK).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagegate.telemetry.api import Attributes, Metadata, Span, SpanKind, TraceContext, Tracing
from pagegate.telemetry.nothing import NO_TELEMETRY
from pagegate.telemetry.semconv import rpc_attributes

if TYPE_CHECKING:
    from pagegate.telemetry.telemetry import Telemetry, TelemetrySettings

__all__ = [
    "NO_TELEMETRY",
    "Attributes",
    "Metadata",
    "Span",
    "SpanKind",
    "Telemetry",
    "TelemetrySettings",
    "TraceContext",
    "Tracing",
    "rpc_attributes",
]


def __getattr__(name: str) -> object:
    if name in ("Telemetry", "TelemetrySettings"):
        from pagegate.telemetry import telemetry  # noqa: PLC0415

        return getattr(telemetry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
