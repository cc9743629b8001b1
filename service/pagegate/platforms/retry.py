"""Asking again, a bounded number of times, when a kernel or host says "busy"."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pagegate.errors import PlatformError

_Result = TypeVar("_Result")


class PlatformBusyError(PlatformError):
    """The same request may succeed a little later."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and after which pauses a busy platform is asked again."""

    delays: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    """Longest pause in seconds before each further attempt. Half of each is random, so that many guests that a
    host throttles do not come back all at once."""

    def run(self, attempt: Callable[[], _Result]) -> _Result:
        """Returns what `attempt` returns. Raises its last PlatformBusyError when it stays busy."""
        for delay in self.delays:
            try:
                return attempt()
            except PlatformBusyError:
                time.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - no secret
        return attempt()
