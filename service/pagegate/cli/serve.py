"""`pagegate serve`: the attestation-gated page server."""

from __future__ import annotations

import signal
import threading
from functools import partial
from typing import Any, cast

import click

from pagegate.audit import AuditLog
from pagegate.cli._options import (
    build_telemetry,
    config_options,
    settle,
    warn_simulated,
)
from pagegate.cli._policy import PolicyInForce
from pagegate.config import ServeConfig
from pagegate.connect import build_platform
from pagegate.errors import ConfigError
from pagegate.handshake.model import Limits
from pagegate.rpc.events import Observer, ServerEvent, ignore
from pagegate.rpc.tls import ServerTls
from pagegate.server import Server, ServerOptions
from pagegate.telemetry.logs import configure_logging


def server_options(config: ServeConfig) -> ServerOptions:
    """The server's limits from its configuration. Raises ConfigError."""
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError("TLS_CERTIFICATE", "TLS needs both --tls-cert and --tls-key")
    tls = ServerTls.load(config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
    return ServerOptions(
        listen=config.listen,
        limits=Limits(config.session_lifetime, config.max_batch_pages, config.max_batches_in_flight),
        max_sessions=config.max_sessions,
        max_handshakes=config.max_handshakes,
        max_streams=config.max_streams,
        tls=tls,
        bridge=config.bridge,
    )


@click.command("serve")
@config_options(ServeConfig)
def command(**options: Any) -> None:
    """Serve regions to peers that prove what they run.

    Prints one line "listening on HOST:PORT" when it is ready. SIGTERM drains and stops; The policy file is
    loaded again when it changes or on SIGHUP: a broken new file keeps the old one in force, and sessions that the new
    one no longer admits are closed. --shadow-policy tries a policy without obeying it.

    \b
    Examples:
      pagegate serve --policy policy.yaml --region book=64MiB@0x100000000:/var/lib/pagegate/book
      pagegate serve --platform simulated --allow-simulated --policy policy.yaml --region book=64MiB
    """
    config = cast(ServeConfig, settle(ServeConfig, options))
    if not config.region:
        raise ConfigError("REGION", "there is nothing to serve: give at least one --region, for example book=64MiB")
    regions, limits = config.regions(), server_options(config)
    configure_logging(json=config.log_json, level="INFO")
    platform = build_platform(config)
    if platform.simulated or config.allow_simulated:
        warn_simulated("this server")
    telemetry = build_telemetry(config, "pagegate-server", prometheus_port=config.prometheus_port)
    audit = _open_audit(config)
    observer: Observer = ignore if audit is None else partial(_audit_event, audit)
    policy = PolicyInForce(config, observer)
    server = Server(
        platform=platform,
        appraiser=policy.appraiser,
        regions=regions,
        options=limits,
        telemetry=telemetry,
        observer=observer,
    )
    stop = threading.Event()
    reload = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            reload.set()
        else:
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    server.start()
    click.echo(f"listening on {server.address}")
    while not stop.wait(0.2):
        asked = reload.is_set()
        reload.clear()
        policy.tend(server, asked=asked)
    server.stop(config.drain_seconds)
    if audit is not None:
        audit.close()
    telemetry.shutdown()


def _open_audit(config: ServeConfig) -> AuditLog | None:
    if not config.audit:
        return None
    config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return AuditLog.open(config.state / "audit.sqlite", signing_key_path=config.state / "audit.key")


def _audit_event(audit: AuditLog, event: ServerEvent) -> None:
    audit.append(event.kind, event.subject, event.details)
