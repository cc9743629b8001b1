"""Turns at KDS: one request at a time for what it rations, and silence while it asks for it."""

from __future__ import annotations

from dataclasses import dataclass

MAX_HOLD = 86400.0
"""Seconds; a later turn than this can only come of a clock that was set back, and is forgotten."""


@dataclass(frozen=True, slots=True)
class Turns:
    """State of one queue, wall-clock seconds: when the next request may go out, and not before when at all."""

    next_at: float = 0.0
    held_until: float = 0.0

    def taken(self, now: float, interval: float, latest: float) -> tuple[float | None, Turns]:
        """The time of the next free turn and the state after taking it; None when it is after `latest`."""
        at = max([now, *(t for t in (self.next_at, self.held_until) if t <= now + MAX_HOLD)])
        if at > latest:
            return None, self
        return at, Turns(at + interval, self.held_until)

    def is_held(self, now: float) -> bool:
        """The server asked for silence, and that time is not over."""
        return now < self.held_until <= now + MAX_HOLD

    def held(self, until: float) -> Turns:
        """Nothing goes out before `until`."""
        return Turns(max(self.next_at, until), max(self.held_until, until))
