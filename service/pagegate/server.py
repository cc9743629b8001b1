"""The assembled server: one gRPC port with Attestation, PageTransfer, health and reflection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import enclave_bridge as eb
from pagegate.errors import ConfigError
from pagegate.evidence.model import Appraiser, Verdict
from pagegate.handshake.model import HANDSHAKE_TIMEOUT_S, SUITES_DEFAULT, Limits
from pagegate.handshake.server import ServerHandshake, ServerSettings
from pagegate.platforms.model import Platform
from pagegate.rpc import transfer as rpc_transfer
from pagegate.rpc.attestation import AttestationServicer
from pagegate.rpc.events import Observer, ServerEvent, ignore
from pagegate.rpc.tls import ServerTls
from pagegate.telemetry import NO_TELEMETRY, Tracing
from pagegate.transfer.keeper import BridgeKeeper, BridgeKind
from pagegate.transfer.region import RegionSpec, RegionTable
from pagegate.transfer.registry import TransferRegistry
from pagegate.transfer.session import SessionTable
from pagegate.v1 import attestation_pb2, attestation_pb2_grpc, transfer_pb2

_SERVICES = (
    attestation_pb2.DESCRIPTOR.services_by_name["Attestation"].full_name,
    transfer_pb2.DESCRIPTOR.services_by_name["PageTransfer"].full_name,
)

Reappraise = Callable[[Verdict, datetime], Verdict]
"""Judges a kept verdict again under the policy now in force."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a server allows."""

    listen: str = "127.0.0.1:7443"
    """Address and port; port 0 takes a free one (`Server.port`)."""
    limits: Limits = field(default_factory=Limits)
    suites: Sequence[eb.Suite] = SUITES_DEFAULT
    max_sessions: int = 256
    max_handshakes: int = 16
    max_streams: int = 64
    """Calls served at once; further ones get RESOURCE_EXHAUSTED."""
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S
    stale_transfer_s: float = 30.0
    """Seconds after which a broken transfer loses its region to another writer."""
    tls: ServerTls | None = None
    bridge: BridgeKind = BridgeKind.IN_PROCESS
    """Where keys and plaintext staging are; `pagegate serve` isolates them unless told otherwise."""


class Server:
    """Starts on `start`, serves until `stop`. Use as a context manager in tests and embeddings."""

    def __init__(
        self,
        *,
        platform: Platform,
        appraiser: Appraiser,
        regions: Sequence[RegionSpec],
        options: ServerOptions | None = None,
        telemetry: Tracing = NO_TELEMETRY,
        observer: Observer = ignore,
    ) -> None:
        """Raises ConfigError, TransferError (a region's backing), BridgeError (locked memory, no isolation)."""
        self.options = options = options or ServerOptions()
        self.started_at = time.time()
        self._observer = observer
        self._appraiser = appraiser
        self.regions = RegionTable(regions)
        self.sessions = SessionTable(options.max_sessions)
        self._health = health.HealthServicer()
        self._keeper = BridgeKeeper(
            options.bridge,
            max_sessions=options.max_sessions,
            max_handshakes=options.max_handshakes + 1,
            changed=self._bridge_changed,
        )
        self._registry = TransferRegistry(lambda: self._keeper.current, stale_after_s=options.stale_transfer_s)
        settings = ServerSettings(
            limits=options.limits,
            suites=options.suites,
            tls_binding=options.tls.binding if options.tls else b"",
        )
        max_message = options.limits.max_batch_pages * eb.RECORD_SIZE + 4096
        self._grpc = grpc.server(
            ThreadPoolExecutor(max_workers=options.max_streams, thread_name_prefix="pagegate-rpc"),
            maximum_concurrent_rpcs=options.max_streams,
            options=(
                ("grpc.max_receive_message_length", max(max_message, 1 << 20)),
                ("grpc.max_send_message_length", max_message + (1 << 20)),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ),
        )
        attestation_pb2_grpc.add_AttestationServicer_to_server(
            AttestationServicer(
                lambda: ServerHandshake(self._keeper.current, platform, self._appraiser, self.regions, settings),
                self.sessions,
                telemetry,
                observer,
                max_handshakes=options.max_handshakes,
                timeout_s=options.handshake_timeout_s,
            ),
            self._grpc,
        )
        rpc_transfer.add_to_server(
            rpc_transfer.PageTransferServicer(
                lambda: self._keeper.current, self.regions, self.sessions, self._registry, telemetry, observer
            ),
            self._grpc,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)
        self.port = self._bind(options)
        self._stopping = threading.Lock()

    def _bind(self, options: ServerOptions) -> int:
        try:
            if options.tls is not None:
                return self._grpc.add_secure_port(options.listen, options.tls.credentials())
            return self._grpc.add_insecure_port(options.listen)
        except RuntimeError as error:
            raise ConfigError(
                "LISTEN", f"cannot listen on {options.listen}: the address is in use or not this machine's"
            ) from error

    @property
    def bridge(self) -> eb.Bridge:
        """The bridge in use. Raises TransferError BRIDGE_DIED while there is none."""
        return self._keeper.current

    def _bridge_changed(self, alive: bool) -> None:
        """A bridge that died took every key and every account with it: what depends on them ends here."""
        if not alive:
            self.sessions.close()
            self._registry.reset()
            self.regions.close_doors()
        self._say_healthy(alive)

    def _say_healthy(self, healthy: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for service in ("", *_SERVICES):
            self._health.set(service, status.SERVING if healthy else status.NOT_SERVING)

    @property
    def address(self) -> str:
        """Host and port as bound."""
        return f"{self.options.listen.rpartition(':')[0]}:{self.port}"

    def start(self) -> Self:
        """Begins to serve; health becomes SERVING."""
        self._grpc.start()
        self._say_healthy(True)
        return self

    def reappraise(self, appraiser: Appraiser, judge: Reappraise) -> int:
        """Puts a new policy in force: open sessions that it would not admit are closed. Returns how many."""
        self._appraiser = appraiser
        closed = 0
        for live in self.sessions:
            verdict = judge(live.verdict, datetime.now(UTC))
            grants = verdict.grants
            kept = verdict.accepted and all(
                (mode := grants.get(r.name, grants.get("*"))) is not None and mode.allows(r.mode)
                for r in live.established.regions.values()
            )
            if kept:
                live.verdict = verdict
                continue
            self.sessions.drop(live.established.session_id)
            closed += 1
            self._observer(
                ServerEvent(
                    "refusal",
                    live.verdict.identity or live.peer_address,
                    {"reason": "POLICY_CHANGED", "session": live.established.session_id.hex()},
                )
            )
        return closed

    def drain(self) -> None:
        """Tells load balancers to go elsewhere; running calls go on."""
        self._health.enter_graceful_shutdown()

    def stop(self, grace_s: float = 5.0) -> None:
        """Drains, waits for running calls up to `grace_s`, ends sessions and zeroises keys."""
        with self._stopping:
            self.drain()
            self._grpc.stop(grace_s).wait()
            self.sessions.close()
            self.regions.close()
            self._keeper.close()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Blocks until the server has stopped; True when it timed out."""
        return self._grpc.wait_for_termination(timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(0.5)
