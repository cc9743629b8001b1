"""How many verified bytes of pages crossed, for operators."""

from __future__ import annotations

import threading


class Traffic:
    """Bytes in and out since the start. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in = 0
        self._out = 0

    def add(self, *, received: int = 0, sent: int = 0) -> None:
        """Counts bytes of page contents."""
        with self._lock:
            self._in += received
            self._out += sent

    @property
    def bytes(self) -> tuple[int, int]:
        """In and out."""
        with self._lock:
            return self._in, self._out
