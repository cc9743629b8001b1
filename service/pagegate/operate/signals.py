"""What a running server is asked by signals: drain, stop at once, reload."""

from __future__ import annotations

import os
import signal
import threading

AT_ONCE_S = 1.0
"""Seconds after a second SIGTERM or SIGINT within which the process is gone, whatever still hangs."""
EXIT_HURRIED = 1


class Signals:
    """SIGTERM and SIGINT ask to drain, a second one to stop at once; SIGHUP asks to reload."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.hurry = threading.Event()
        self._reload = threading.Event()

    def install(self) -> None:
        """From the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def reload_asked(self) -> bool:
        """True once for each time a reload was asked for."""
        asked = self._reload.is_set()
        self._reload.clear()
        return asked

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self._reload.set()
        elif not self.stop.is_set():
            self.stop.set()
        elif not self.hurry.is_set():
            self.hurry.set()
            # An exporter without an answer, or a slow disk, must not keep a process that was told twice.
            last = threading.Timer(AT_ONCE_S, os._exit, (EXIT_HURRIED,))
            last.daemon = True
            last.start()
