"""Logs that carry the trace they were written in."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from pagegate.errors import TransferError
from pagegate.telemetry import Telemetry, TelemetrySettings
from pagegate.telemetry.logs import MAX_MESSAGE, configure_logging


@pytest.fixture(autouse=True)
def clean_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("pagegate", "opentelemetry")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_log_when_in_a_span_then_carries_its_ids() -> None:
    stream = io.StringIO()
    configure_logging(json=True, stream=stream)
    telemetry = Telemetry.start(TelemetrySettings("test"))
    with telemetry.span("pagegate.client.send") as span:
        logging.getLogger("pagegate.transfer").info("sent %d pages", 16)
    logging.getLogger("pagegate.transfer").info("outside")
    telemetry.shutdown()
    inside, outside = lines(stream)
    assert span.context is not None
    assert (inside["trace_id"], inside["span_id"]) == (span.context.trace_id, span.context.span_id)
    assert (inside["message"], inside["level"], inside["logger"]) == ("sent 16 pages", "info", "pagegate.transfer")
    assert "trace_id" not in outside


def test_json_log_when_error_is_logged_then_carries_reason_and_traceback_on_one_line() -> None:
    stream = io.StringIO()
    configure_logging(json=True, stream=stream)
    try:
        raise TransferError("TAMPERED", "page 3\nforged line")
    except TransferError:
        logging.getLogger("pagegate").exception("refused")
    (entry,) = lines(stream)
    assert entry["reason"] == "TAMPERED"
    assert "TransferError" in str(entry["exception"])


def test_plain_log_when_peer_sends_control_characters_then_they_are_escaped() -> None:
    stream = io.StringIO()
    configure_logging(json=False, stream=stream)
    logging.getLogger("pagegate").warning("peer said %s", "\x1b[2Jforged\nline" + "x" * MAX_MESSAGE)
    (line,) = stream.getvalue().splitlines()
    assert "\\x1b[2Jforged\\nline" in line
    assert len(line) < MAX_MESSAGE + 100


def test_configure_when_called_again_then_replaces_its_handler_and_leaves_others() -> None:
    other = logging.NullHandler()
    logging.getLogger("pagegate").addHandler(other)
    configure_logging(json=True, stream=io.StringIO())
    second = configure_logging(json=False, level="DEBUG", stream=io.StringIO())
    assert set(logging.getLogger("pagegate").handlers) >= {other, second}
    assert [h.get_name() for h in logging.getLogger("pagegate").handlers].count("pagegate") == 1
    assert logging.getLogger("pagegate").level == logging.DEBUG


def test_configure_when_level_is_unknown_then_value_error() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging(json=True, level="LOUD")
