"""`pagegate send`: move a file, standard input or a process's memory to a server."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

import enclave_bridge as eb
from pagegate.cli._options import (
    build_telemetry,
    config_options,
    settle,
    warn_simulated,
)
from pagegate.client import Client
from pagegate.config import PeerConfig
from pagegate.connect import build_appraiser, build_platform
from pagegate.rpc.tls import ClientTls
from pagegate.transfer.source import FileSource, ProcessSource, Source, file_source, process_mappings, stream_source

_RANGE = re.compile(r"(0x[0-9a-fA-F]+|[0-9]+)-(0x[0-9a-fA-F]+|[0-9]+)")


@click.command("send")
@click.argument("target")
@click.argument("region")
@click.argument("source", required=False)
@click.option("--pid", type=int, help="Send memory of this running process instead of a file.")
@click.option("--range", "address_range", help="With --pid: addresses START-END, hexadecimal with 0x, whole pages.")
@click.option("--mapping", help="With --pid: the mapping of this name in /proc/PID/maps, for example [heap].")
@click.option("--gpa", help="Guest-physical address of the first page. [default: the region's base]")
@click.option("--delta", is_flag=True, help="Keep the pages of the region that are not sent.")
@click.option(
    "--tls-server-cert",
    type=click.Path(path_type=Path),
    help="The server's own certificate (PEM), its successor too if it is about to change; turns TLS on.",
)
@click.option(
    "--ring",
    metavar="auto|off|PATH",
    default="auto",
    show_default=True,
    help="Send through shared memory where the server offers it and is on this host; off: always by gRPC. PATH is the "
    "server's socket as seen from here, or the file or device (ivshmem BAR) that both machines map.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@config_options(PeerConfig)
def command(
    target: str,
    region: str,
    source: str | None,
    pid: int | None,
    address_range: str | None,
    mapping: str | None,
    gpa: str | None,
    delta: bool,
    tls_server_cert: Path | None,
    ring: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Send pages to REGION of the server at TARGET (host:port) as one snapshot.

    SOURCE is a file, or - for standard input. The server is believed only after its evidence was appraised by
    --policy; this side proves itself too. Nothing becomes visible on the server before everything has arrived.

    \b
    Examples:
      pagegate send 10.0.0.7:7443 book snapshot.bin --policy policy.yaml
      pagegate send 10.0.0.7:7443 book --pid 4242 --mapping '[heap]' --policy policy.yaml
    """
    config = settle(PeerConfig, options)
    if (source is None) == (pid is None):
        raise click.UsageError("give either SOURCE (a file, or - for standard input) or --pid")
    platform = build_platform(config)
    if platform.simulated:
        warn_simulated("this client")
    telemetry = build_telemetry(config, "pagegate-client")
    try:
        with (
            telemetry.span("pagegate.send"),
            Client(
                target,
                platform=platform,
                appraiser=build_appraiser(config, telemetry=telemetry),
                regions={region: "write"},
                tls=ClientTls.pins(tls_server_cert) if tls_server_cert else None,
                telemetry=telemetry,
                ring={"auto": True, "off": False}.get(ring, Path(ring)),
            ) as client,
        ):
            limit = client.session.regions[region].pages * eb.PAGE_SIZE
            with _open_source(source, pid, address_range, mapping, limit) as pages:
                with _progress(as_json) as progress:
                    sent = client.send(
                        region,
                        pages,
                        first_gpa=int(gpa, 0) if gpa else None,
                        mode="delta" if delta else "replace",
                        progress=progress,
                    )
            carrier = "ring" if client.ring_in_use else "grpc"
            simulated = client.session.simulated
            identity = client.session.peer.identity
    finally:
        telemetry.shutdown()
    rate = sent.pages * eb.PAGE_SIZE / max(sent.seconds, 1e-9)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "region": region,
                    "pages": sent.pages,
                    "bytes": sent.pages * eb.PAGE_SIZE,
                    "generation": sent.generation,
                    "seconds": round(sent.seconds, 6),
                    "resumed": sent.resumed,
                    "carrier": carrier,
                    "server_identity": identity,
                    "simulated": simulated,
                }
            )
        )
    else:
        click.echo(
            f"{sent.pages} pages committed to {region} as generation {sent.generation} "
            f"in {sent.seconds:.2f} s ({rate / 1e6:.0f} MB/s), server accepted as {identity}"
            + (" (SIMULATED)" if simulated else "")
        )


@contextmanager
def _open_source(
    source: str | None, pid: int | None, address_range: str | None, mapping: str | None, limit: int
) -> Iterator[Source | FileSource]:
    if pid is not None:
        start, end = _addresses(pid, address_range, mapping)
        process = ProcessSource(pid, start, end)
        try:
            yield process
        finally:
            process.close()
    elif source == "-":
        yield stream_source(sys.stdin.buffer, limit)
    else:
        with file_source(Path(source or "")) as file:
            yield file


def _addresses(pid: int, address_range: str | None, mapping: str | None) -> tuple[int, int]:
    if address_range is not None:
        match = _RANGE.fullmatch(address_range)
        if match is None:
            raise click.UsageError(
                f"--range {address_range!r} is not START-END, for example 0x7f0000000000-0x7f0000400000"
            )
        return int(match[1], 0), int(match[2], 0)
    if mapping is None:
        raise click.UsageError("with --pid say what to send: --range START-END or --mapping NAME")
    found = [m for m in process_mappings(pid) if m.name == mapping]
    if not found:
        names = sorted({m.name for m in process_mappings(pid) if m.name})
        raise click.UsageError(f"process {pid} has no readable mapping {mapping!r}; it has {', '.join(names)}")
    return found[0].start, found[0].end


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("sending", total=None)
        yield lambda done, total: progress.update(task, completed=done * eb.PAGE_SIZE, total=total * eb.PAGE_SIZE)
