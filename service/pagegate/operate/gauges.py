"""The server's state as gauges. Set about once a second: none of them is worth a lock in the page path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pagegate.evidence.model import Verdict
from pagegate.operate.reloads import Reloads
from pagegate.server import Server
from pagegate.telemetry import Tracing

CHIP_DIGITS = 16
"""Of a chip id's 128: enough to tell the chips of a fleet apart, and to find one in the audit log."""


class Gauges:
    """Publishes one server's gauges."""

    def __init__(self, server: Server, reloads: Reloads, telemetry: Tracing, *, simulated_allowed: bool) -> None:
        self._server = server
        self._reloads = reloads
        self._telemetry = telemetry
        self._simulated_allowed = simulated_allowed
        self._sessions = {True: 0, False: 0}
        self._peers: Counter[tuple[tuple[str, str], ...]] = Counter()
        self._replaced = 0

    def publish(self) -> None:
        """Sets every gauge to what is true now."""
        server, limits = self._server, self._server.options.admission
        policy = self._reloads.standing("policy")
        self._count_sessions()
        for name, value in (
            ("pagegate.sessions.limit", server.options.max_sessions),
            ("pagegate.handshakes.live", server.attestation.live),
            ("pagegate.handshakes.limit", server.options.max_handshakes),
            ("pagegate.streams.live", server.gate.live),
            ("pagegate.streams.limit", limits.max_streams),
            ("pagegate.flight", server.gate.flight.used),
            ("pagegate.flight.limit", server.gate.flight.limit),
            ("pagegate.server.draining", int(server.gate.draining)),
            ("pagegate.server.started", server.started_at),
            ("pagegate.simulated.allowed", int(self._simulated_allowed)),
            ("pagegate.policy.generation", policy.generation if policy else 0),
        ):
            self._telemetry.record(name, value)
        if server.tls is not None:
            self._telemetry.record("pagegate.tls.expiry", server.tls.current.expires_at.timestamp())
        self._regions()
        self._bridge()
        self._reloads.publish()

    def _count_sessions(self) -> None:
        """An up-down counter, so what counts is the difference to the last time."""
        self._server.sessions.sweep()
        now = {True: 0, False: 0}
        peers: Counter[tuple[tuple[str, str], ...]] = Counter()
        for live in self._server.sessions:
            now[live.established.simulated] += 1
            peers[_peer(live.verdict)] += 1
        for simulated, number in now.items():
            labels: dict[str, str | bool] = {"pagegate.role": "server", "pagegate.simulated": simulated}
            self._telemetry.count("pagegate.sessions.live", number - self._sessions[simulated], labels)
        self._sessions = now
        for peer in {*self._peers, *peers}:
            self._telemetry.count("pagegate.peers", peers[peer] - self._peers[peer], dict(peer))
        self._peers = peers

    def _regions(self) -> None:
        staged = self._server.staged()
        for region in self._server.regions:
            labels = {"pagegate.region": region.spec.name}
            self._telemetry.record("pagegate.region.generation", region.generation, labels)
            self._telemetry.record("pagegate.region.pages", region.spec.pages, labels)
            self._telemetry.record("pagegate.region.staged", staged.get(region.number, (0, 0))[0], labels)

    def _bridge(self) -> None:
        info = self._server.bridge_info
        labels = {
            "pagegate.bridge.backend": info.backend,
            "pagegate.bridge.kernel": info.gcm_kernel,
            "pagegate.bridge.memory": info.memory,
            "pagegate.bridge.libcrypto": info.libcrypto,
        }
        self._telemetry.record("pagegate.bridge.info", 1, labels)
        # From the start, also while it is 0: an increase can only be seen of what was there before.
        replaced = self._server.bridges_replaced
        self._telemetry.count("pagegate.bridge.replaced", replaced - self._replaced)
        self._replaced = replaced


def _peer(verdict: Verdict) -> tuple[tuple[str, str], ...]:
    """What tells a believed peer's machine: a fleet has few, so the series stay few."""
    details = verdict.claims.details if verdict.claims else {}
    tcb = details.get("reported_tcb")
    parts = tcb.items() if isinstance(tcb, Mapping) else ()
    return (
        ("pagegate.evidence.product", str(details.get("product") or "")),
        ("pagegate.identity", verdict.identity or ""),
        ("pagegate.platform.id", verdict.claims.platform_id[:CHIP_DIGITS] if verdict.claims else ""),
        ("pagegate.tcb", " ".join(f"{part} {version}" for part, version in parts if isinstance(version, int))),
    )
