"""The options of a running server: which of them SIGHUP can change, and how."""

from __future__ import annotations

from collections.abc import Callable

import enclave_bridge as eb
from pagegate.config import ServeConfig, parse_size
from pagegate.connect import build_sealing
from pagegate.errors import ConfigError, PagegateError
from pagegate.handshake.model import Limits
from pagegate.operate.reloads import Reloads
from pagegate.rpc.admission import AdmissionLimits
from pagegate.rpc.pace import PaceLimits
from pagegate.rpc.tls import ServerTls
from pagegate.server import Server, ServerOptions
from pagegate.telemetry.logs import configure_logging

RELOADABLE = frozenset(
    {"drain_seconds", "log_json", "log_level", "max_bytes_in_flight", "slow_peer_rate", "slow_peer_seconds"}
)
"""Options that a running server takes over; the others need a restart."""


def pace_of(config: ServeConfig) -> PaceLimits:
    """How slow a peer may be. Raises ConfigError."""
    rate = parse_size(config.slow_peer_rate)
    if rate < 1:
        raise ConfigError("CONFIG_INVALID", "slow_peer_rate is 0 bytes a second; give at least 1")
    return PaceLimits(config.slow_peer_seconds, rate)


def flight_of(config: ServeConfig) -> int:
    """Most bytes in flight. Raises ConfigError when not even one peer could be served."""
    limit, batch = parse_size(config.max_bytes_in_flight), config.max_batch_pages * eb.RECORD_SIZE
    if limit < 2 * batch:
        raise ConfigError(
            "CONFIG_INVALID",
            f"max_bytes_in_flight is {limit}, and one stream may hold two batches of {batch} bytes: give at least "
            f"{2 * batch}, or lower max_batch_pages",
        )
    return limit


def server_options(config: ServeConfig, tls: ServerTls | None) -> ServerOptions:
    """The server's limits from its configuration. Raises ConfigError."""
    return ServerOptions(
        listen=config.listen,
        limits=Limits(config.session_lifetime, config.max_batch_pages, config.max_batches_in_flight),
        max_sessions=config.max_sessions,
        max_handshakes=config.max_handshakes,
        admission=AdmissionLimits(config.max_streams, flight_of(config), pace_of(config)),
        keepalive_s=config.keepalive_seconds,
        keepalive_timeout_s=config.keepalive_timeout,
        tls=tls,
        tls_overlap_s=config.tls_overlap,
        health_listen=config.health_listen,
        bridge=config.bridge,
        ring_socket=config.ring_socket,
        ring_file=config.ring_file,
        sealing=build_sealing(config),
    )


class OptionsInForce:
    """The options of a running server, as they are now."""

    def __init__(self, config: ServeConfig, load: Callable[[], ServeConfig], reloads: Reloads) -> None:
        """`load` settles them again from flags, environment and file."""
        self.config = config
        self._load = load
        self._reloads = reloads
        reloads.first("config")
        configure_logging(json=config.log_json, level=config.log_level.upper())

    def reload(self, server: Server) -> None:
        """Takes over what changed and can change; says what it did and what needs a restart."""
        try:
            new = self._load()
            flight, pace = flight_of(new), pace_of(new)
        except PagegateError as error:
            self._reloads.refused("config", error)
            return
        differs = {name for name in type(new).model_fields if getattr(new, name) != getattr(self.config, name)}
        taken, left = sorted(differs & RELOADABLE), sorted(differs - RELOADABLE)
        self.config = self.config.model_copy(update={name: getattr(new, name) for name in taken})
        server.gate.flight.limit, server.gate.pace = flight, pace
        configure_logging(json=self.config.log_json, level=self.config.log_level.upper())
        said = [f"{name} is {getattr(new, name)}" for name in taken]
        said += [f"{name} changes with the next start" for name in left]
        self._reloads.loaded("config", "; ".join(said) or "no option changed", changed=bool(taken))
