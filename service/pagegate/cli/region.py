"""`pagegate region`: look after the regions of a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pagegate.cli import EXIT_REJECTED
from pagegate.cli._options import build_telemetry, config_options, settle, warn_simulated
from pagegate.client import Client, RegionCheck
from pagegate.config import PeerConfig
from pagegate.connect import build_appraiser, build_platform
from pagegate.rpc.tls import ClientTls

_PAGE = 4096


@click.group("region")
def command() -> None:
    """Look after the regions of a server."""


@command.command("verify")
@click.argument("target")
@click.argument("region")
@click.option(
    "--tls-server-cert", type=click.Path(path_type=Path), help="The server's own certificate (PEM); turns TLS on."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@config_options(PeerConfig)
@click.pass_context
def verify(
    context: click.Context,
    /,
    target: str,
    region: str,
    tls_server_cert: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Check that REGION of the server at TARGET (host:port) holds what was written to it.

    The server's bridge compares every page of the committed generation with its MAC. It finds what anyone else did
    to the region's memory or files: changed, exchanged, restored or missing pages, also while the server was down.
    Needs a grant to read the region. The exit code is 2 when a page is not what was written.

    \b
    Examples:
      pagegate region verify 10.0.0.7:7443 book --policy policy.yaml
      pagegate region verify 10.0.0.7:7443 book --policy policy.yaml --json
    """
    config = settle(PeerConfig, options)
    platform = build_platform(config)
    if platform.simulated:
        warn_simulated("this client")
    telemetry = build_telemetry(config, "pagegate-client")
    try:
        with Client(
            target,
            platform=platform,
            appraiser=build_appraiser(config),
            regions={region: "read"},
            tls=ClientTls.pinned(tls_server_cert) if tls_server_cert else None,
            telemetry=telemetry,
        ) as client:
            found = client.verify_region(region)
            base_gpa = client.session.regions[region].base_gpa
    finally:
        telemetry.shutdown()
    click.echo(_as_json(region, found) if as_json else _as_text(region, base_gpa, found))
    if not found.intact:
        context.exit(EXIT_REJECTED)


def _as_json(region: str, found: RegionCheck) -> str:
    return json.dumps(
        {
            "region": region,
            "generation": found.generation,
            "pages": found.pages,
            "intact": found.intact,
            "bad_pages": found.bad_pages,
            "bad": [{"first_gpa": hex(gpa), "pages": pages} for gpa, pages in found.bad],
        }
    )


def _as_text(region: str, base_gpa: int, found: RegionCheck) -> str:
    if found.intact:
        return f"{found.pages} pages of {region} generation {found.generation} are what was written"
    lines = [
        f"memory tampering detected: {found.bad_pages} of {found.pages} pages of {region} generation "
        f"{found.generation} are not what was written"
    ]
    for gpa, pages in found.bad:
        first = (gpa - base_gpa) // _PAGE
        where = f"page {first}" if pages == 1 else f"pages {first} to {first + pages - 1}"
        lines.append(f"  {where} at {gpa:#x}")
    listed = sum(pages for _, pages in found.bad)
    if listed < found.bad_pages:
        lines.append(f"  and {found.bad_pages - listed} more")
    return "\n".join(lines)
