"""Live sessions of a server: who the peer is, what it may use, until when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pagegate.errors import TransferError
from pagegate.evidence.model import AccessMode, Verdict
from pagegate.handshake.model import Established, GrantedRegion


@dataclass(slots=True)
class LiveSession:
    """One session of one attested peer."""

    established: Established
    peer_address: str
    opened_at: float
    """Unix time in seconds."""
    expires_at: float
    """time.monotonic() at which the session ends."""
    verdict: Verdict
    pages_in: int = 0
    pages_out: int = 0
    """Pages that crossed in this session, verified; for operators."""

    @property
    def owner(self) -> tuple[str, bytes, str]:
        """What must be equal for another session to go on with this one's transfers."""
        claims = self.verdict.claims
        return (
            self.verdict.identity or "",
            claims.measurement if claims else b"",
            claims.platform_id if claims else "",
        )

    def granted(self, number: int, mode: AccessMode) -> GrantedRegion:
        """The grant for a region number. Raises TransferError REGION_NOT_GRANTED."""
        for region in self.established.regions.values():
            if region.number == number and region.mode.allows(mode):
                return region
        raise TransferError(
            "REGION_NOT_GRANTED",
            f"this session may not {mode.value} region number {number}; ask for it in the handshake",
        )


class SessionTable:
    """All live sessions, bounded. Thread-safe."""

    def __init__(self, max_sessions: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max = max_sessions
        self._clock = clock
        self._sessions: dict[bytes, LiveSession] = {}
        self._lock = threading.Lock()
        self._total = 0

    @property
    def total(self) -> int:
        """Sessions since the start, the live ones included."""
        return self._total

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[LiveSession]:
        with self._lock:
            return iter(list(self._sessions.values()))

    def check_room(self) -> None:
        """Raises TransferError TOO_MANY_SESSIONS before a handshake does any work."""
        self.sweep()
        if len(self._sessions) >= self._max:
            raise TransferError(
                "TOO_MANY_SESSIONS", f"all {self._max} sessions are in use; retry later", retry_after=1.0
            )

    def add(self, established: Established, peer_address: str) -> LiveSession:
        """Registers a session that a handshake has just opened."""
        live = LiveSession(
            established,
            peer_address,
            opened_at=time.time(),
            expires_at=self._clock() + established.limits.lifetime_s,
            verdict=established.peer,
        )
        try:
            self.check_room()
        except TransferError:
            established.session.close()
            raise
        with self._lock:
            self._sessions[established.session_id] = live
            self._total += 1
        return live

    def get(self, session_id: bytes) -> LiveSession:
        """Raises TransferError SESSION_UNKNOWN or SESSION_EXPIRED."""
        live = self._sessions.get(session_id)
        if live is None:
            raise TransferError(
                "SESSION_UNKNOWN",
                "no such session on this server (never attested, expired, or another pod); attest first",
            )
        if self._clock() >= live.expires_at:
            self.drop(session_id)
            raise TransferError("SESSION_EXPIRED", "the session has expired; attest again")
        return live

    def drop(self, session_id: bytes) -> None:
        """Ends a session: keys are zeroised. A transfer in progress may go on under a new session."""
        with self._lock:
            live = self._sessions.pop(session_id, None)
        if live is not None:
            live.established.session.close()

    def sweep(self) -> None:
        """Ends the sessions whose time is over."""
        now = self._clock()
        for session_id, live in list(self._sessions.items()):
            if now >= live.expires_at:
                self.drop(session_id)

    def close(self) -> None:
        """Ends every session."""
        for session_id in list(self._sessions):
            self.drop(session_id)
