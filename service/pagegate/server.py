"""The assembled server: one gRPC port with Attestation, PageTransfer, health and reflection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import enclave_bridge as eb
from pagegate.errors import ConfigError
from pagegate.evidence.model import Appraiser, Verdict
from pagegate.handshake.measured import MeasuredAppraiser, MeasuredPlatform
from pagegate.handshake.model import HANDSHAKE_TIMEOUT_S, SUITES_DEFAULT, Limits
from pagegate.handshake.server import ServerHandshake, ServerSettings
from pagegate.platforms.model import Platform
from pagegate.platforms.sealing import SealingSource
from pagegate.rpc import transfer as rpc_transfer
from pagegate.rpc.admission import Admission, AdmissionLimits, Gate
from pagegate.rpc.attestation import AttestationServicer
from pagegate.rpc.events import Observer, ServerEvent, ignore
from pagegate.rpc.pace import Watchdog
from pagegate.rpc.ring import RingSource
from pagegate.rpc.ring_file import RingFile
from pagegate.rpc.ring_server import RingServer
from pagegate.rpc.ring_transfers import RingTransfers
from pagegate.rpc.tls import ServerTls, TlsInForce
from pagegate.telemetry import NO_TELEMETRY, Tracing
from pagegate.transfer.keeper import BridgeKeeper, BridgeKind
from pagegate.transfer.protection import GuardMaker
from pagegate.transfer.region import RegionSpec, RegionTable
from pagegate.transfer.registry import TransferRegistry
from pagegate.transfer.session import SessionTable
from pagegate.transfer.traffic import Traffic
from pagegate.v1 import attestation_pb2, attestation_pb2_grpc, transfer_pb2

_SERVICES = (
    attestation_pb2.DESCRIPTOR.services_by_name["Attestation"].full_name,
    transfer_pb2.DESCRIPTOR.services_by_name["PageTransfer"].full_name,
)

FINISH_SHARE = 0.5
"""Share of the grace period in which running streams may end by themselves; the rest is for their commits."""
_LAST_WORDS_S = 0.5
_PROBE_WATCHERS = 8
READINESS = "readiness"
"""Health service for readiness probes: also NOT_SERVING while no peer could believe this machine. That of "" tells
only that the process serves: sessions that are open go on."""

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
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    """Calls, bytes and slow peers; what is over a limit gets RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED."""
    keepalive_s: float = 30.0
    """Seconds of silence after which a connection is asked whether it is alive."""
    keepalive_timeout_s: float = 10.0
    """Seconds that it has to answer; also what a new connection has to finish its TLS handshake."""
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S
    stale_transfer_s: float = 30.0
    """Seconds after which a broken transfer loses its region to another writer."""
    tls: ServerTls | None = None
    bridge: BridgeKind = BridgeKind.IN_PROCESS
    """Where keys and plaintext staging are; `pagegate serve` isolates them unless told otherwise."""
    sealing: SealingSource | None = None
    """Where the key comes from that page MACs of file-backed regions are kept under; None leaves those without."""
    tls_overlap_s: float = 3600.0
    """Seconds for which a replaced certificate is attested to connections that were opened with it."""
    health_listen: str | None = None
    """Address and port of a plain-text port with the health service alone; None for none."""
    ring_socket: Path | None = None
    """Unix socket that hands shared memory to peers on this host; None offers none."""
    ring_file: Path | None = None
    """File or device that a peer in another machine maps too (an ivshmem BAR); in place of a ring_socket."""


def _guards_for(regions: int, streams: int) -> int:
    """Each region has the guard of its committed and of its staged generation, two for a moment at a renewal; a read
    may keep that of a former one; a sealing key takes a slot, and another while it is made."""
    return min(65536, 3 * regions + streams + 2)


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
        self.platform = platform
        self.traffic = Traffic()
        # The blocking form: the interceptor paces and counts it as it does every call.
        self._health = health.HealthServicer(experimental_non_blocking=False)
        self._trusted = True
        self._keeper = BridgeKeeper(
            options.bridge,
            max_sessions=options.max_sessions,
            max_handshakes=options.max_handshakes + 1,
            max_guards=_guards_for(len(regions), options.admission.threads),
            changed=self._bridge_changed,
        )
        self._guards = GuardMaker(self._keeper.current, options.sealing)
        self.regions = RegionTable(regions, self._guards)
        self.sessions = SessionTable(options.max_sessions)
        self._registry = TransferRegistry(lambda: self._keeper.current, stale_after_s=options.stale_transfer_s)
        self.gate = Gate(options.admission)
        self.tls = TlsInForce(options.tls, overlap_s=options.tls_overlap_s) if options.tls else None
        self._watchdog = Watchdog()
        self._readers = ThreadPoolExecutor(options.admission.threads, thread_name_prefix="pagegate-read")
        self._grpc = grpc.server(
            ThreadPoolExecutor(options.admission.threads, thread_name_prefix="pagegate-rpc"),
            interceptors=[Admission(self.gate, self._readers, self._watchdog, telemetry, observer)],
            maximum_concurrent_rpcs=options.admission.threads,
            options=_channel_options(options),
        )
        self.attestation = AttestationServicer(
            lambda: ServerHandshake(
                self._keeper.current,
                MeasuredPlatform(platform, telemetry, "server"),
                MeasuredAppraiser(self._appraiser, telemetry, "server"),
                self.regions,
                self._settings(),
            ),
            self.sessions,
            telemetry,
            observer,
            max_handshakes=options.max_handshakes,
            timeout_s=options.handshake_timeout_s,
        )
        attestation_pb2_grpc.add_AttestationServicer_to_server(self.attestation, self._grpc)
        pages = rpc_transfer.PageTransferServicer(
            lambda: self._keeper.current,
            self.regions,
            self.sessions,
            self._registry,
            telemetry,
            observer,
            self.traffic,
        )
        rpc_transfer.add_to_server(pages, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)
        self.port = self._bind(options)
        self._probes = self._probe_server(options.health_listen) if options.health_listen else None
        pages.rings = _ring_source(options, RingTransfers(pages.transfer_pages, self.sessions, self.gate))
        self._rings = pages.rings
        self._stopping = threading.Lock()

    def _settings(self) -> ServerSettings:
        """What the next handshake brings: the certificate in force is not always the same."""
        return ServerSettings(
            limits=self.options.limits,
            suites=self.options.suites,
            tls_binding=self.tls.current.binding if self.tls else b"",
            tls_former=self.tls.former() if self.tls else (),
        )

    def _bind(self, options: ServerOptions) -> int:
        try:
            if self.tls is not None:
                return self._grpc.add_secure_port(options.listen, self.tls.credentials())
            return self._grpc.add_insecure_port(options.listen)
        except RuntimeError as error:
            raise ConfigError(
                "LISTEN", f"cannot listen on {options.listen}: the address is in use or not this machine's"
            ) from error

    def _probe_server(self, listen: str) -> grpc.Server:
        """Health checks in plain text and nothing else: kubelet's probes speak no TLS."""
        limits = AdmissionLimits(max_streams=_PROBE_WATCHERS)
        probes = grpc.server(
            ThreadPoolExecutor(limits.threads, thread_name_prefix="pagegate-probe"),
            interceptors=[Admission(Gate(limits), self._readers, self._watchdog, NO_TELEMETRY, ignore)],
            maximum_concurrent_rpcs=limits.threads,
            options=_channel_options(self.options),
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, probes)
        try:
            probes.add_insecure_port(listen)
        except RuntimeError as error:
            raise ConfigError(
                "LISTEN", f"cannot answer health checks on {listen}: the address is in use or not this machine's"
            ) from error
        return probes

    @property
    def bridge(self) -> eb.Bridge:
        """The bridge in use. Raises TransferError BRIDGE_DIED while there is none."""
        return self._keeper.current

    @property
    def bridge_info(self) -> eb.BridgeInfo:
        """What the bridge was found to be when it was opened; the former one's while another is being started."""
        return self._keeper.info

    @property
    def bridges_replaced(self) -> int:
        """How many bridges have died and been replaced since the start."""
        return self._keeper.replaced

    def _bridge_changed(self, alive: bool) -> None:
        """A bridge that died took every key and every account with it: what depends on them ends here."""
        if alive:
            self._guards.use(self._keeper.opened)
            self.regions.take_up()
        else:
            self.sessions.close()
            self._registry.reset()
            self.regions.close_doors()
        self._say_healthy(alive)

    def _say_healthy(self, alive: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for service in ("", READINESS, *_SERVICES):
            well = alive and (self._trusted or service not in (READINESS, _SERVICES[0]))
            self._health.set(service, status.SERVING if well else status.NOT_SERVING)

    @property
    def address(self) -> str:
        """Host and port as bound."""
        return f"{self.options.listen.rpartition(':')[0]}:{self.port}"

    def staged(self) -> dict[int, tuple[int, int]]:
        """Number of each region that is being written -> pages staged, pages to come in all."""
        return self._registry.staged()

    def start(self) -> Self:
        """Begins to serve; health becomes SERVING.

        Each region's generation is told to the observer: one that is higher than the last commit in the audit log
        was committed by a server that was killed before it could log or acknowledge it.
        """
        for region in self.regions:
            self._observer(ServerEvent("start", region.spec.name, {"generation": region.generation}))
        self._watchdog.start()
        self._grpc.start()
        if self._rings is not None:
            self._rings.start()
        if self._probes is not None:
            self._probes.start()
        self._say_healthy(True)
        return self

    def trusted(self, *, trusted: bool) -> None:
        """Says whether new handshakes can succeed: health of READINESS and of Attestation."""
        self._trusted = trusted
        self._say_healthy(self._keeper.alive)

    def attest_again(self) -> int:
        """Ends every session, so that each peer attests anew (clients do by themselves). Returns how many."""
        ended = list(self.sessions)
        for live in ended:
            self.sessions.drop(live.established.session_id)
        return len(ended)

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
                    "the policy in force no longer admits this peer as it attested, or its grants; the session is closed",
                    verdict.failures,
                )
            )
        return closed

    def drain(self, finish_s: float = 0.0) -> None:
        """Tells load balancers and new callers to go elsewhere. Running streams get `finish_s` seconds to end by
        themselves, then they are told to resume elsewhere; a commit under way is finished."""
        self.gate.drain(finish_s)
        self._health.enter_graceful_shutdown()

    def finish(self, grace_s: float, hurry: threading.Event | None = None) -> bool:
        """Drains and waits for running calls, up to `grace_s` or until `hurry`. True when all have ended."""
        self.drain(grace_s * FINISH_SHARE)
        until = time.monotonic() + grace_s
        idle = self.gate.wait_idle(0.0)
        while not idle and time.monotonic() < until and not (hurry and hurry.is_set()):
            idle = self.gate.wait_idle(min(0.1, max(0.0, until - time.monotonic())))
        return idle

    def stop(self, grace_s: float = 5.0, *, hurry: threading.Event | None = None) -> bool:
        """Finishes, then cuts off what still runs, ends sessions and zeroises keys.

        True when every call had ended by itself.
        """
        with self._stopping:
            idle = self.finish(grace_s, hurry)
            # A call that has ended still has to tell its peer so.
            self._grpc.stop(_LAST_WORDS_S if idle else 0.0).wait()
            if self._rings is not None:
                self._rings.close()
            self._watchdog.stop()
            self._readers.shutdown(wait=False)
            if self._probes is not None:
                self._probes.stop(None).wait()
            self.sessions.close()
            self.regions.close()
            self._keeper.close()
            return idle

    def wait(self, timeout_s: float | None = None) -> bool:
        """Blocks until the server has stopped; True when it timed out."""
        return self._grpc.wait_for_termination(timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(0.5)


def _ring_source(options: ServerOptions, transfers: RingTransfers) -> RingSource | None:
    batch_pages = options.limits.max_batch_pages
    if options.ring_socket is not None and options.ring_file is not None:
        raise ConfigError("RING_FILE", "give --ring-socket or --ring-file, not both")
    if options.ring_file is not None:
        return RingFile(options.ring_file, transfers, batch_pages=batch_pages)
    if options.ring_socket is not None:
        return RingServer(options.ring_socket, transfers, batch_pages=batch_pages)
    return None


def _channel_options(options: ServerOptions) -> tuple[tuple[str, int], ...]:
    max_message = options.limits.max_batch_pages * eb.RECORD_SIZE + 4096
    return (
        ("grpc.max_receive_message_length", max(max_message, 1 << 20)),
        ("grpc.max_send_message_length", max_message + (1 << 20)),
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", options.admission.threads),
        ("grpc.server_handshake_timeout_ms", int(options.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_time_ms", int(options.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(options.keepalive_timeout_s * 1000)),
        # What decides while the peer says nothing at all; gRPC's default is a minute.
        ("grpc.http2.ping_timeout_ms", int(options.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    )
