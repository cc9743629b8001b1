"""The kernel's SEV-SNP events as metrics, spans and log lines; `pagegate watch` inside the server."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType

from pagegate.host.events import KernelEvent, Severity, parse_line
from pagegate.host.sources import KernelLines
from pagegate.telemetry import Tracing

_log = logging.getLogger("pagegate.host")
_LEVELS = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING, Severity.CRITICAL: logging.ERROR}
Told = Callable[[KernelEvent], None]


@contextmanager
def measured(event: KernelEvent, telemetry: Tracing) -> Iterator[None]:
    """Makes one event a count and a span; the block tells it to people, with the span's trace id."""
    labels = {"pagegate.host.event": event.kind.value, "pagegate.host.severity": event.severity.value}
    telemetry.count("pagegate.host.events", 1, labels)
    more: dict[str, str | float] = {"pagegate.host.origin": event.origin, "pagegate.host.text": event.text}
    if event.uptime is not None:
        more["pagegate.host.uptime"] = event.uptime
    with telemetry.span("pagegate.host.event", {**labels, **more}) as span:
        if event.severity is Severity.CRITICAL:
            span.error(event.kind.value.upper().replace("-", "_"), event.text)
        yield


class HostWatch:
    """Follows the kernel in a thread of its own, from now on; a context manager. Every event is measured and told
    to `told`."""

    def __init__(self, telemetry: Tracing, told: Told, *, lines: KernelLines | None = None) -> None:
        """`lines` is this machine's kernel unless a test gives another."""
        self._telemetry = telemetry
        self._told = told
        self._lines = lines or KernelLines(from_start=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pagegate-host", daemon=True)

    @property
    def blind(self) -> bool:
        """True when nothing of this machine can be watched."""
        return self._lines.blind

    def __enter__(self) -> HostWatch:
        """Begins; says what cannot be seen and why."""
        for reason in self._lines.unseen:
            _log.warning("not watched: %s", reason)
        self._telemetry.record("pagegate.host.watched", 0 if self.blind else 1)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends and removes the trace instance."""
        self._stop.set()
        self._thread.join()
        self._lines.close()

    def _run(self) -> None:
        if self.blind:
            return
        try:
            self._follow(self._lines.follow())
        except OSError as error:
            self._telemetry.record("pagegate.host.watched", 0)
            _log.error("the kernel can be watched no more: %s", error)

    def _follow(self, lines: Iterable[str | None]) -> None:
        for line in lines:
            if self._stop.is_set():
                return
            event = parse_line(line) if line is not None else None
            if event is not None:
                with measured(event, self._telemetry):
                    _log.log(_LEVELS[event.severity], "%s (%s): %s", event.kind.value, event.severity.value, event.text)
                    self._told(event)
