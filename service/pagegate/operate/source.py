"""The facts behind the status page of a real server."""

from __future__ import annotations

import importlib.metadata
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from pagegate.host.events import KernelEvent, Severity
from pagegate.operate.reloads import Reloads
from pagegate.rpc.events import ServerEvent
from pagegate.server import Server
from pagegate.status import (
    Refusal,
    RegionStatus,
    ServerState,
    ServerStatus,
    SessionStatus,
    ThroughputPoint,
)
from pagegate.transfer.region import Region
from pagegate.transfer.session import LiveSession

REFUSALS_KEPT: Final = 50
POINTS_KEPT: Final = 300
"""Five minutes, one point a second."""


class EventMemory:
    """Remembers what an observer is told: the last refusals and when regions were committed. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refusals: deque[Refusal] = deque(maxlen=REFUSALS_KEPT)
        self._refusals_total = 0
        self._committed: dict[str, datetime] = {}

    def observe(self, event: ServerEvent) -> None:
        """An observer of the server."""
        now = datetime.now(UTC)
        with self._lock:
            if event.kind == "refusal":
                self._refusals_total += 1
                self._refusals.appendleft(_refusal(event, now))
            elif event.kind == "commit":
                self._committed[str(event.details["region"])] = now

    def kernel(self, event: KernelEvent) -> None:
        """A kernel event worth a look stands among the refusals: that is where an operator looks first."""
        if event.severity is Severity.INFO:
            return
        reason = "HOST_" + event.kind.value.upper().replace("-", "_")
        with self._lock:
            self._refusals_total += 1
            self._refusals.appendleft(Refusal(datetime.now(UTC), reason, event.text, "this host's kernel"))

    def refusals(self) -> tuple[int, tuple[Refusal, ...]]:
        """All since the start, and the last ones, newest first."""
        with self._lock:
            return self._refusals_total, tuple(self._refusals)

    def committed_at(self, region: str) -> datetime | None:
        """When a region was last committed since the start."""
        return self._committed.get(region)


class Throughput:
    """What crossed, second by second."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._points: deque[ThroughputPoint] = deque(maxlen=POINTS_KEPT)
        self._at = time.monotonic()
        self._seen = (0, 0)

    def sample(self) -> None:
        """Adds a point for the time since the last one."""
        now = time.monotonic()
        total = self._server.traffic.bytes
        seconds, self._at = now - self._at, now
        moved = (total[0] - self._seen[0], total[1] - self._seen[1])
        self._seen = total
        self._points.append(ThroughputPoint(datetime.now(UTC), seconds, *moved))

    @property
    def points(self) -> tuple[ThroughputPoint, ...]:
        """Oldest first."""
        return tuple(self._points)


class ServerSource:
    """A StatusSource over a running server's tables."""

    def __init__(
        self,
        server: Server,
        memory: EventMemory,
        throughput: Throughput,
        reloads: Reloads,
        *,
        policy: str,
        policy_digest: Callable[[], str],
        listening: Sequence[str],
    ) -> None:
        """`policy` is its path, `policy_digest` tells which is in force; `listening` are the addresses the server answers on."""
        self._server = server
        self._memory = memory
        self._throughput = throughput
        self._reloads = reloads
        self._policy = policy
        self._policy_digest = policy_digest
        self._listening = tuple(listening)
        self._name = socket.gethostname()
        self._version = importlib.metadata.version("pagegate")

    def status(self) -> ServerStatus:
        """See StatusSource.status."""
        server = self._server
        info = server.bridge_info
        refused, refusals = self._memory.refusals()
        server.sessions.sweep()
        staged = server.staged()
        return ServerStatus(
            name=self._name,
            version=self._version,
            state=ServerState.DRAINING if server.gate.draining else ServerState.SERVING,
            now=datetime.now(UTC),
            started_at=datetime.fromtimestamp(server.started_at, UTC),
            listening=self._listening,
            platform=f"{server.platform.name} ({server.platform.evidence_type.value})",
            simulated=server.platform.simulated,
            policy=self._policy,
            policy_digest=self._policy_digest(),
            policy_problem=self._reloads.problem("policy"),
            other_problems=tuple(
                f"{what}: {problem}" for what in ("tls", "config") if (problem := self._reloads.problem(what))
            ),
            bridge=", ".join((info.backend, *info.hardening, info.gcm_kernel, info.memory, info.libcrypto)),
            sessions=tuple(_session(live) for live in server.sessions),
            sessions_total=server.sessions.total,
            regions=tuple(
                _region(region, staged.get(region.number, (0, 0)), self._memory.committed_at(region.spec.name))
                for region in server.regions
            ),
            refusals=refusals,
            refusals_total=refused,
            throughput=self._throughput.points,
        )


def _refusal(event: ServerEvent, now: datetime) -> Refusal:
    details = event.details
    session = str(details.get("session", ""))
    return Refusal(
        now,
        str(details.get("reason", "")),
        event.message,
        peer_address=str(details.get("peer", event.subject)),
        session_id=session,
        identity=event.subject if session else "",
        trace_id=event.trace_id,
        failures=event.failures,
    )


def _session(live: LiveSession) -> SessionStatus:
    established, claims = live.established, live.verdict.claims
    opened = datetime.fromtimestamp(live.opened_at, UTC)
    details: Mapping[str, object] = claims.details if claims else {}
    tcb = details.get("reported_tcb")
    return SessionStatus(
        id=established.session_id.hex(),
        peer_address=live.peer_address,
        identity=live.verdict.identity or "",
        evidence_type=claims.type.value if claims else "",
        measurement=claims.measurement.hex() if claims else "",
        platform_id=claims.platform_id if claims else "",
        tcb={str(part): version for part, version in tcb.items() if isinstance(version, int)}
        if isinstance(tcb, Mapping)
        else {},
        simulated=established.simulated,
        since=opened,
        expires_at=datetime.fromtimestamp(live.opened_at + established.limits.lifetime_s, UTC),
        product=str(details.get("product") or ""),
        grants={name: region.mode for name, region in established.regions.items()},
        pages_in=live.pages_in,
        pages_out=live.pages_out,
    )


def _region(region: Region, staged: tuple[int, int], committed_at: datetime | None) -> RegionStatus:
    spec = region.spec
    return RegionStatus(
        spec.name,
        spec.base_gpa,
        spec.pages,
        region.generation,
        f"{'memfd' if spec.directory is None else f'file {spec.directory}'}, {region.protection}",
        committed_at,
        *staged,
    )
