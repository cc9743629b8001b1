"""Lets only listed names and harmless values into telemetry."""

from __future__ import annotations

import logging
from typing import Final

from pagegate.telemetry import semconv
from pagegate.telemetry.api import Attributes, Value

MAX_TEXT: Final = 1024
"""Longest text an attribute may hold, characters; the rest is cut off."""
MAX_ITEMS: Final = 64
"""Longest list an attribute may hold; the rest is cut off."""

_log = logging.getLogger(__name__)


class TelemetryMisuseError(TypeError):
    """A defect in the calling code: bytes in an attribute, or (in strict mode) a name that is not listed."""


class Guard:
    """Checks names against `semconv`. Strict raises on an unlisted name; otherwise it is dropped,
    with one warning a name, since telemetry must not stop a transfer. Bytes raise in either mode."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._warned: set[str] = set()

    def attributes(self, given: Attributes | None) -> dict[str, Value]:
        """The attributes that may go out, cut to size."""
        if not given:
            return {}
        return {
            key: _harmless(key, value)
            for key, value in given.items()
            if key in semconv.ATTRIBUTES or self._unlisted("attribute", key)
        }

    def labels(self, metric: semconv.Metric, given: Attributes | None) -> dict[str, Value]:
        """The attributes a series may be split by."""
        if not given:
            return {}
        return {
            key: _harmless(key, value)
            for key, value in given.items()
            if key in metric.attributes or self._unlisted(f"attribute of metric {metric.name}", key)
        }

    def metric(self, name: str, verb: str, *instruments: semconv.Instrument) -> semconv.Metric | None:
        """The row of a metric that `verb` may feed; None when it is unlisted or of another kind."""
        row = semconv.METRICS.get(name)
        if row is None or row.instrument not in instruments:
            self._unlisted(f"metric for {verb}", name)
            return None
        return row

    def span(self, name: str) -> None:
        """Notes a span name that is not listed; the span itself goes out."""
        if not semconv.is_known_span(name):
            self._unlisted("span", name)

    def event(self, name: str) -> bool:
        """True when the event may go out."""
        return name in semconv.EVENTS or self._unlisted("event", name)

    def _unlisted(self, what: str, name: str) -> bool:
        """Always False, or raises."""
        if self._strict:
            raise TelemetryMisuseError(
                f"{what} {name!r} is not in pagegate.telemetry.semconv: list it there, or drop it"
            )
        if name not in self._warned and len(self._warned) < MAX_TEXT:
            self._warned.add(name)
            _log.warning("telemetry: %s %r is not listed in semconv and was dropped", what, name)
        return False


def _harmless(key: str, value: Value) -> Value:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 1] + "…"
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(item[:MAX_TEXT] for item in value[:MAX_ITEMS])
    raise TelemetryMisuseError(
        f"attribute {key!r} holds {type(value).__name__}: only str, bool, int, float and lists of str go out"
    )
