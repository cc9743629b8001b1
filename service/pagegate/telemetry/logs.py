"""Structured logs: one JSON object a line that carries the trace and span it was written in."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

from opentelemetry import trace as otel

from pagegate.errors import PagegateError

MAX_MESSAGE: Final = 8192
"""Longest message written, characters: a peer chooses part of some messages."""


class JsonFormatter(logging.Formatter):
    """One line of JSON a record: time, level, logger, message, then trace_id and span_id inside a span,
    then reason (of a pagegate error) and exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, without its end."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MAX_MESSAGE],
        }
        context = otel.get_current_span().get_span_context()
        if context.is_valid:
            entry["trace_id"] = f"{context.trace_id:032x}"
            entry["span_id"] = f"{context.span_id:016x}"
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            if isinstance(error, PagegateError):
                entry["reason"] = error.reason
            entry["exception"] = self.formatException(record.exc_info)[:MAX_MESSAGE]
        return json.dumps(entry, ensure_ascii=False, default=str)


class PlainFormatter(logging.Formatter):
    """For a terminal: time, level, message on one line. Control characters of a peer's making do not
    reach the terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        """Returns the line, without its end and without the traceback."""
        line = super().formatMessage(record)[:MAX_MESSAGE]
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def configure_logging(json: bool, level: int | str = "INFO", stream: TextIO | None = None) -> logging.Handler:
    """Sends the logs of `pagegate` to `stream` (standard error by default), as JSON or as plain lines.

    Only the logger "pagegate" and OpenTelemetry's own warnings are touched, never the root logger: an
    embedding program keeps its own. Calling it again replaces the former handler. Returns the handler.
    Raises ValueError for an unknown level.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.set_name("pagegate")
    handler.setFormatter(JsonFormatter() if json else PlainFormatter())
    for name in ("pagegate", "opentelemetry"):
        logger = logging.getLogger(name)
        for former in [h for h in logger.handlers if h.get_name() == "pagegate"]:
            logger.removeHandler(former)
        logger.setLevel(level if name == "pagegate" else logging.WARNING)
        logger.addHandler(handler)
        logger.propagate = False
    return handler
