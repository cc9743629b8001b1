"""Telemetry that does nothing, so that callers never ask whether telemetry is on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final

from pagegate.telemetry.api import Attributes, Metadata, Span, SpanKind, TraceContext, Tracing


class _NoSpan:
    """A span nobody looks at; also its own context manager."""

    __slots__ = ()
    context: TraceContext | None = None

    def __enter__(self) -> _NoSpan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def set(self, attributes: Attributes) -> None:
        return None

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        return None

    def refused(self, reason: str, message: str = "") -> None:
        return None

    def error(self, reason: str, message: str = "") -> None:
        return None


_NO_SPAN: Final = _NoSpan()


class _NoTelemetry:
    """Answers every call and does nothing."""

    __slots__ = ()

    def span(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        kind: SpanKind = "internal",
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
    ) -> AbstractContextManager[Span]:
        return _NO_SPAN

    def timed_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        nanoseconds: int,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
    ) -> None:
        return None

    def count(self, name: str, value: int = 1, attributes: Attributes | None = None) -> None:
        return None

    def record(self, name: str, value: float, attributes: Attributes | None = None) -> None:
        return None

    def metadata(self) -> Metadata:
        return ()

    def extract(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> TraceContext | None:
        return None

    def flush(self, timeout: float = 5.0) -> bool:
        return True

    def shutdown(self) -> None:
        return None


NO_TELEMETRY: Final[Tracing] = _NoTelemetry()
