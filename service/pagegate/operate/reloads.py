"""What has been loaded again while the server runs, and what was refused: one account for log, metrics and page."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from pagegate.errors import PagegateError
from pagegate.telemetry import Tracing

_log = logging.getLogger("pagegate.reload")


@dataclass(frozen=True, slots=True)
class Standing:
    """One thing that can be loaded again."""

    generation: int
    """How many have been in force since the start, the present one included."""
    loaded_at: float
    """Unix time in seconds at which the present one was loaded."""
    problem: str = ""
    """Why the newest is not in force; empty when it is."""


class Reloads:
    """Keeps the account. `what` is "policy", "tls" or "config"."""

    def __init__(self, telemetry: Tracing, *, clock: Callable[[], float] = time.time) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._standing: dict[str, Standing] = {}

    def first(self, what: str) -> None:
        """It was loaded at the start."""
        self._standing[what] = Standing(1, self._clock())

    def standing(self, what: str) -> Standing | None:
        """None for what this server does not have (TLS, a configuration file)."""
        return self._standing.get(what)

    def problem(self, what: str) -> str:
        """Why the newest is not in force; empty when it is, or when there is none."""
        standing = self._standing.get(what)
        return standing.problem if standing else ""

    def loaded(self, what: str, said: str, *, changed: bool = True) -> None:
        """The newest is in force. `said` is for the operator; `changed` is false when it equals the former."""
        before = self._standing[what]
        self._standing[what] = Standing(before.generation + changed, self._clock())
        _log.info("%s reloaded: %s", what, said)
        self._ended(what, "ok")

    def refused(self, what: str, error: PagegateError) -> None:
        """The newest is not usable. Said once for each reason, not at every look."""
        if self.problem(what) == str(error):
            return
        self._standing[what] = replace(self._standing[what], problem=str(error))
        _log.error("%s not reloaded, the former one stays in force: %s", what, error)
        self._ended(what, "refused", error)

    def _ended(self, what: str, outcome: str, error: PagegateError | None = None) -> None:
        labels = {"pagegate.reload": what, "pagegate.outcome": outcome}
        with self._telemetry.span("pagegate.reload", labels) as span:
            if error is not None:
                span.error(error.reason, error.message)
        self._telemetry.count("pagegate.reloads", 1, labels)
        self.publish()

    def publish(self) -> None:
        """Sets the gauges."""
        for what, standing in self._standing.items():
            labels = {"pagegate.reload": what}
            self._telemetry.record("pagegate.reload.ok", 0 if standing.problem else 1, labels)
            self._telemetry.record("pagegate.reload.time", standing.loaded_at, labels)
