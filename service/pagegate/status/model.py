"""What the status page shows, as plain facts. The server implements `StatusSource`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from pagegate.evidence.model import AccessMode, Failure


class ServerState(StrEnum):
    """Whether the server takes new work."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """An attested session that is open now."""

    id: str
    """Hex. A name, not a credential."""
    peer_address: str
    identity: str
    """Policy identity that matched."""
    evidence_type: str
    measurement: str
    """Hex."""
    platform_id: str
    """Chip identity, hex; empty when masked."""
    tcb: Mapping[str, int]
    """Part of the reported TCB -> its version, in the order to show them."""
    simulated: bool
    since: datetime
    expires_at: datetime | None = None
    product: str = ""
    grants: Mapping[str, AccessMode] = field(default_factory=dict)
    """Region -> what this session may do there."""
    pages_in: int = 0
    pages_out: int = 0


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """A region and, when one is under way, the transfer into it."""

    name: str
    base_gpa: int
    pages: int
    generation: int
    """Committed generation; 0 before the first commit."""
    backing: str
    """"memfd, page MACs", "file ..., no page MACs", ..."""
    committed_at: datetime | None = None
    staged_pages: int = 0
    """Pages verified and waiting for their commit."""
    expected_pages: int = 0
    """Pages the transfer under way will bring; 0 when there is none."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something the gate refused, with every reason."""

    at: datetime
    reason: str
    """Stable upper-case code."""
    message: str
    peer_address: str = ""
    identity: str = ""
    session_id: str = ""
    trace_id: str = ""
    """32 hex digits; links to the waterfall while the trace is remembered."""
    failures: tuple[Failure, ...] = ()
    """Every check that failed, when it was an appraisal."""


@dataclass(frozen=True, slots=True)
class ThroughputPoint:
    """What crossed in one interval."""

    at: datetime
    """End of the interval."""
    seconds: float
    """Length of the interval."""
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """Everything but the traces."""

    name: str
    version: str
    state: ServerState
    now: datetime
    started_at: datetime
    listening: tuple[str, ...]
    platform: str
    """Where the server's own evidence comes from."""
    simulated: bool
    """True when that platform is simulated."""
    policy: str
    """Name or path of the policy in force."""
    policy_digest: str
    """SHA-256, hex."""
    policy_problem: str = ""
    """Why a newer policy file is not in force; empty when the newest is."""
    other_problems: tuple[str, ...] = ()
    """What else was to be loaded again and is not in force, each with its reason: certificate, options."""
    bridge: str = ""
    """Backend, kernel and kind of secret memory."""
    sessions: tuple[SessionStatus, ...] = ()
    sessions_total: int = 0
    """Sessions since start, the open ones included."""
    regions: tuple[RegionStatus, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    """The last ones, newest first."""
    refusals_total: int = 0
    """Refusals since start."""
    throughput: tuple[ThroughputPoint, ...] = ()
    """The last minutes, oldest first."""


class StatusSource(Protocol):
    """What can tell how the server is."""

    def status(self) -> ServerStatus:
        """A consistent snapshot, cheap enough for twice a second. All times carry a time zone."""
        ...
