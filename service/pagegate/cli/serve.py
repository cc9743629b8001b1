"""`pagegate serve`: the attestation-gated page server."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from datetime import timedelta
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
from pagegate.connect import build_platform, endorsement_settings
from pagegate.endorsements import Cache
from pagegate.errors import ConfigError
from pagegate.operate.certificate import CertificateInForce
from pagegate.operate.gauges import Gauges
from pagegate.operate.housekeeping import Housekeeping
from pagegate.operate.kernel import HostWatch
from pagegate.operate.options import OptionsInForce, server_options
from pagegate.operate.page import open_page, status_address
from pagegate.operate.reloads import Reloads
from pagegate.operate.signals import EXIT_HURRIED, Signals
from pagegate.operate.source import EventMemory, ServerSource, Throughput
from pagegate.operate.upkeep import Upkeep
from pagegate.rpc.events import Observer, ServerEvent
from pagegate.server import Server

_log = logging.getLogger("pagegate.serve")


@click.command("serve")
@config_options(ServeConfig)
def command(**options: Any) -> None:
    """Serve regions to peers that prove what they run.

    Prints one line "listening on HOST:PORT" when it is ready.

    SIGTERM or SIGINT drains: health says NOT_SERVING, new work is sent elsewhere (UNAVAILABLE, DRAINING), running
    streams get half of --drain-seconds to end and are then told to resume elsewhere, commits are finished. A second
    one stops at once. SIGHUP loads the policy, the TLS certificate and the options of --config again; policy and
    certificate are also followed on disk. A broken new file keeps the old one in force. Sessions that a new policy
    no longer admits are closed. --shadow-policy tries a policy without obeying it.

    \b
    Examples:
      pagegate serve --policy policy.yaml --region book=64MiB@0x100000000:/var/lib/pagegate/book
      pagegate serve --config serve.yaml --status-listen 127.0.0.1:7480 --watch-host
      pagegate serve --platform simulated --allow-simulated --policy policy.yaml --region book=64MiB
    """
    given = dict(options)
    config = cast(ServeConfig, settle(ServeConfig, options))
    if not config.region:
        raise ConfigError("REGION", "there is nothing to serve: give at least one --region, for example book=64MiB")
    regions = config.regions()
    status_address(config)
    platform = build_platform(config)
    if platform.simulated or config.allow_simulated:
        warn_simulated("this server")
    telemetry = build_telemetry(
        config,
        "pagegate-server",
        prometheus_port=config.prometheus_port,
        prometheus_host=config.prometheus_host,
    )
    reloads = Reloads(telemetry)
    settings = OptionsInForce(config, lambda: cast(ServeConfig, settle(ServeConfig, dict(given))), reloads)
    certificate = CertificateInForce(config, reloads)
    memory = EventMemory()
    audit = _open_audit(config)
    observer: Observer = memory.observe if audit is None else partial(_audit_event, audit, memory)
    policy = PolicyInForce(config, observer, reloads=reloads, telemetry=telemetry)
    endorsements = endorsement_settings(config)
    upkeep = Upkeep(
        platform,
        lambda: policy.in_force,
        Cache(endorsements.cache_path, max_bytes=endorsements.cache_max_bytes),
        telemetry,
        observer,
        warn_before=timedelta(days=config.warn_days),
    )
    server = Server(
        platform=platform,
        appraiser=policy.appraiser,
        regions=regions,
        options=server_options(config, certificate.tls),
        telemetry=telemetry,
        observer=observer,
    )
    signals = Signals()
    signals.install()
    throughput = Throughput(server)
    allowed = platform.simulated or config.allow_simulated
    gauges = Gauges(server, reloads, telemetry, simulated_allowed=allowed)
    source = ServerSource(
        server,
        memory,
        throughput,
        reloads,
        policy=policy.path,
        policy_digest=lambda: policy.digest,
        listening=(server.address,),
    )
    with ExitStack() as running:
        page = open_page(config, source, telemetry.recorder)
        if page is not None:
            running.enter_context(page)
        if config.watch_host:
            running.enter_context(HostWatch(telemetry, memory.kernel))
        running.enter_context(Housekeeping((gauges.publish, throughput.sample)))
        server.start()
        upkeep.start(server)
        running.callback(upkeep.stop)
        click.echo(f"listening on {server.address}")
        if page is not None:
            click.echo(f"status page at {page.url}")
        _tend(server, signals, policy, certificate, settings, upkeep)
        _log.info("draining, %d calls under way; a second signal stops at once", server.gate.live)
        drained = server.finish(settings.config.drain_seconds, signals.hurry)
        _log.info("stopped, %s", "every call had ended" if drained else "calls under way were cut off")
    # After those who read its tables.
    server.stop(0.0)
    if audit is not None:
        audit.close()
    telemetry.shutdown()
    if signals.hurry.is_set():
        raise click.exceptions.Exit(EXIT_HURRIED)


def _tend(
    server: Server,
    signals: Signals,
    policy: PolicyInForce,
    certificate: CertificateInForce,
    settings: OptionsInForce,
    upkeep: Upkeep,
) -> None:
    """Follows files and reloads what is asked for, until a signal says stop."""
    while not signals.stop.wait(0.2):
        asked = signals.reload_asked()
        policy.tend(server, asked=asked)
        certificate.tend(server, asked=asked)
        if asked:
            settings.reload(server)
            upkeep.ask()


def _open_audit(config: ServeConfig) -> AuditLog | None:
    if not config.audit:
        return None
    config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    own_key = config.state / "audit.key"
    return AuditLog.open(
        config.audit_url or config.state / "audit.sqlite",
        signing_key_path=config.audit_key or own_key,
        # Beside this server's own state, also when the key is a secret that it can only read.
        head_path=own_key.with_name("audit.key.head"),
    )


def _audit_event(audit: AuditLog, memory: EventMemory, event: ServerEvent) -> None:
    memory.observe(event)
    audit.append(event.kind, event.subject, event.details)
