"""Bytes in flight: page batches that one server holds in memory for all its peers together."""

from __future__ import annotations

import threading

from pagegate.errors import TransferError

ROOM_WITHIN_S = 1.0
"""Seconds to wait for room, during which HTTP/2 flow control holds the sender back, before a call is refused."""


class Flight:
    """A budget of bytes that many calls share. Thread-safe."""

    def __init__(self, limit: int, *, room_within_s: float = ROOM_WITHIN_S) -> None:
        self.limit = limit
        """Most bytes at once; may be changed while calls run."""
        self._room_within_s = room_within_s
        self._used = 0
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes held now."""
        return self._used

    def take(self, size: int) -> None:
        """Accounts for `size` bytes. Raises TransferError TOO_MANY_BYTES_IN_FLIGHT when no room appears."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._used + size <= self.limit, self._room_within_s):
                raise TransferError(
                    "TOO_MANY_BYTES_IN_FLIGHT",
                    f"{self._used} bytes are in flight and {size} more came; the server's limit is {self.limit}. "
                    "Retry in a moment; a transfer goes on from its last acknowledged batch",
                    retry_after=1.0,
                )
            self._used += size

    def give(self, size: int) -> None:
        """Gives back what `take` accounted for."""
        with self._changed:
            self._used -= size
            self._changed.notify_all()
