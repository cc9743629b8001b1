"""A thread that looks after what is shown: gauges and throughput, once a second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

_log = logging.getLogger(__name__)
EVERY_S = 1.0


class Housekeeping:
    """Runs each chore about once a second; a context manager. A chore that fails is logged and runs again."""

    def __init__(self, chores: Sequence[Callable[[], None]], *, every_s: float = EVERY_S) -> None:
        self._chores = tuple(chores)
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pagegate-housekeeping", daemon=True)

    def _run(self) -> None:
        while True:
            for chore in self._chores:
                try:
                    chore()
                except Exception:
                    _log.exception("housekeeping: a chore failed and is tried again")
            if self._stop.wait(self._every_s):
                return

    def __enter__(self) -> Housekeeping:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
