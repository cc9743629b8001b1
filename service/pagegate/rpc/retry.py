"""When to come again: a server's RetryInfo is honoured, with jitter and within bounds."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from pagegate.errors import PagegateError

MAX_WAIT_S = 60.0
"""Seconds that a caller waits in all, whatever the peer asks for."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_JITTER = 0.5
"""Share of a pause that is added at random: peers that were turned away together do not come back together."""


class Retries:
    """The pauses of one operation. `limit` tries after the first, `max_wait_s` seconds of pauses in all."""

    def __init__(
        self,
        limit: int,
        *,
        max_wait_s: float = MAX_WAIT_S,
        sleep: Callable[[float], None] = time.sleep,
        share: Callable[[], float] = random.random,
    ) -> None:
        self._limit = limit
        self._left_s = max_wait_s
        self._sleep = sleep
        self._share = share
        self.made = 0
        """Pauses made."""

    def pause(self, error: PagegateError) -> bool:
        """Waits as long as `error` asks for, else ever longer; False, at once, when there is no further try."""
        asked = error.retry_after
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**self.made) if asked is None else asked
        pause *= 1.0 + _JITTER * self._share()
        if self.made >= self._limit or pause > self._left_s:
            return False
        self.made += 1
        self._left_s -= pause
        self._sleep(pause)
        return True
