"""A clock that tests move."""

from __future__ import annotations

import threading


class FakeClock:
    """Sleeping moves it on at once; `slept` lists how long each sleep was."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._start = now
        self._elapsed = 0.0
        self._lock = threading.Lock()
        self.slept: list[float] = []

    def now(self) -> float:
        return self._start + self._elapsed

    def monotonic(self) -> float:
        return self._elapsed

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self._elapsed += seconds

    def advance(self, seconds: float) -> None:
        """Time passes."""
        with self._lock:
            self._elapsed += seconds
