"""`pagegate watch`: what the kernel says about SEV-SNP, as it happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from pagegate.cli import EXIT_FAILED, EXIT_REJECTED, EXIT_UNREADABLE
from pagegate.errors import PlatformError
from pagegate.host.events import KernelEvent, Severity, events
from pagegate.host.sources import KernelLines, recorded
from pagegate.operate.kernel import measured
from pagegate.telemetry import NO_TELEMETRY, Telemetry, TelemetrySettings, Tracing

_COLOUR = {Severity.CRITICAL: "red", Severity.WARNING: "yellow"}


@click.command()
@click.option(
    "--from", "recording", type=click.Path(path_type=Path), help="Read recorded text instead of this machine."
)
@click.option("--once", is_flag=True, help="What is in the kernel log now, then stop.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--otlp-endpoint", help="Send events as traces and metrics there too, for example http://127.0.0.1:4317.")
@click.option("--prometheus-port", type=click.IntRange(1, 65535), help="Serve them at /metrics of this port.")
def command(
    recording: Path | None, *, once: bool, as_json: bool, otlp_endpoint: str | None, prometheus_port: int | None
) -> None:
    """Watch the kernel for RMP faults and other SEV-SNP events.

    Reads /dev/kmsg and, where it may, a tracefs instance of its own with kvm:kvm_rmp_fault and
    exceptions:page_fault_* (filtered by the RMP bit). Other tracing is not touched. A recording may
    be dmesg, journalctl -k, /dev/kmsg or trace_pipe text. Events are also metrics and spans where
    --otlp-endpoint or --prometheus-port says so; inside a server, `pagegate serve --watch-host` does
    the same.

    \b
    Exit codes with --once and --from:
      0  no critical event
      1  nothing of this machine could be watched
      2  at least one critical event
      3  the recording cannot be read

    \b
    Examples:
      sudo pagegate watch
      sudo pagegate watch --once --json
      sudo pagegate watch --otlp-endpoint http://127.0.0.1:4317
      journalctl -k -b -1 > last-boot.txt; pagegate watch --from last-boot.txt
    """
    with _telemetry(otlp_endpoint, prometheus_port) as telemetry:
        _watch(recording, telemetry, once=once, as_json=as_json)


@contextmanager
def _telemetry(otlp_endpoint: str | None, prometheus_port: int | None) -> Iterator[Tracing]:
    if otlp_endpoint is None and prometheus_port is None:
        yield NO_TELEMETRY
        return
    telemetry = Telemetry.start(
        TelemetrySettings("pagegate-watch", otlp_endpoint=otlp_endpoint, prometheus_port=prometheus_port)
    )
    try:
        yield telemetry
    finally:
        telemetry.shutdown()


def _watch(recording: Path | None, telemetry: Tracing, *, once: bool, as_json: bool) -> None:
    if recording is not None:
        try:
            _finish(_show(events(recorded(recording)), telemetry, as_json=as_json))
        except PlatformError as error:
            click.echo(f"pagegate: {error}", err=True)
            raise click.exceptions.Exit(EXIT_UNREADABLE) from error
    with KernelLines(from_start=once) as lines:
        for reason in lines.unseen:
            click.echo(f"not watched: {reason}", err=True)
        telemetry.record("pagegate.host.watched", 0 if lines.blind else 1)
        if lines.blind:
            raise click.exceptions.Exit(EXIT_FAILED)
        if once:
            _finish(_show(events(lines.waiting()), telemetry, as_json=as_json))
        try:
            _show(events(line for line in lines.follow() if line is not None), telemetry, as_json=as_json)
        except KeyboardInterrupt:
            return


def _show(found: Iterator[KernelEvent], telemetry: Tracing, *, as_json: bool) -> bool:
    """Prints and measures events as they come; True when one was critical."""
    critical = False
    for event in found:
        critical = critical or event.severity is Severity.CRITICAL
        with measured(event, telemetry):
            click.echo(json.dumps(event.to_json()) if as_json else _line(event))
    return critical


def _finish(critical: bool) -> None:
    raise click.exceptions.Exit(EXIT_REJECTED if critical else 0)


def _line(event: KernelEvent) -> str:
    uptime = f"{event.uptime:14.6f}" if event.uptime is not None else " " * 14
    severity = click.style(f"{event.severity.value:<8}", fg=_COLOUR.get(event.severity))
    text = "".join(c if c.isprintable() else "?" for c in event.text)
    return f"{uptime} {severity} {event.kind.value:<20} {text}"
