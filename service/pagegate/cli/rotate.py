"""`pagegate rotate`: new endorsements after a firmware update, and new TLS certificates, without a restart."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

import click

from pagegate.cli import EXIT_REJECTED
from pagegate.cli._options import OWN_EVIDENCE, config_options, settle, warn_simulated
from pagegate.config import PeerConfig
from pagegate.connect import build_platform, endorsement_settings, trust_anchors
from pagegate.endorsements import Cache
from pagegate.endorsements.part import PRODUCTS, Part
from pagegate.endorsements.rotation import Rotation, plan_rotation
from pagegate.evidence.own import hindrances
from pagegate.evidence.policy import load_policy
from pagegate.evidence.snp.report import REPORT_DATA_BYTES
from pagegate.rpc.tls import ServerTls
from pagegate.rpc.tls_pair import put_in_place

_FILE = click.Path(path_type=Path, dir_okay=False)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, change nothing.")


@click.group()
def command() -> None:
    """Put new endorsements or a new TLS certificate in force while servers run.

    \b
    After an update of SEV firmware or microcode:
      pagegate rotate endorsements --dry-run
      pagegate rotate endorsements
    """


@command.command("endorsements")
@click.option("--product", type=click.Choice(PRODUCTS, case_sensitive=False), help="Asked for by version 2 reports.")
@_dry_run_option
@_json_option
@config_options(PeerConfig, OWN_EVIDENCE)
def endorsements(product: str | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Fetch the VCEK (or take the VLEK) of this machine as it runs now, and swap it into the cache.

    Asks the platform for a report, finds the certificate of that very chip and TCB (in --endorsements, at AMD's KDS, in
    the evidence's own certificate table), verifies the report with it, and then swaps certificate, chain and CRL into
    the cache in one step; VCEKs of the chip's former TCBs go. Nothing changes when a check fails.

    A running server sees the change of the cache within seconds: it makes new evidence, and has every peer attest
    again. Clients do so by themselves and go on where they were; a peer whose evidence no longer passes stays out.
    SIGHUP makes a server look at once.

    With --policy the command also says what a peer with that policy would hold against this machine.

    \b
    Examples:
      pagegate rotate endorsements --dry-run --policy policy.yaml
      pagegate rotate endorsements --endorsements /etc/pagegate/vlek
    Exit codes: 0 in force, 2 the certificate does not endorse this machine's report, 4 it is not to be had.
    """
    config = settle(PeerConfig, options)
    platform = build_platform(config)
    if platform.simulated:
        warn_simulated("this rotation")
    settings = endorsement_settings(config)
    cache = Cache(settings.cache_path, max_bytes=settings.cache_max_bytes)
    try:
        plan = plan_rotation(
            platform.attest(secrets.token_bytes(REPORT_DATA_BYTES)),
            settings,
            cache,
            anchors=trust_anchors(config),
            policy=load_policy(config.policy) if config.policy is not None else None,
            allow_simulated=config.allow_simulated,
            product=product,
            on_wait=_show_wait,
        )
        if not plan.hindrances and not dry_run:
            plan.put_in_force(cache, time.time())
    finally:
        cache.close()
    against = _against(plan) if config.policy is not None else []
    if as_json:
        click.echo(json.dumps(_as_json(plan, against, dry_run=dry_run), indent=2))
    else:
        _print(plan, against, dry_run=dry_run)
    if plan.hindrances:
        raise click.exceptions.Exit(EXIT_REJECTED)


@command.command("tls")
@click.argument("new_certificate", type=_FILE)
@click.argument("new_key", type=_FILE)
@click.option("--tls-cert", type=_FILE, required=True, help="The file that `serve --tls-cert` names.")
@click.option("--tls-key", type=_FILE, required=True, help="The file that `serve --tls-key` names.")
@_dry_run_option
@_json_option
def tls(new_certificate: Path, new_key: Path, tls_cert: Path, tls_key: Path, dry_run: bool, as_json: bool) -> None:
    """Check NEW_CERTIFICATE and NEW_KEY as a pair and put them where a server reads them.

    They must belong together, hold now, and name a server. Each file is replaced by rename, so that no reader sees
    half of one; a running server loads them within a second, for new connections. Clients that pin the former certificate must be given the new one.

    \b
    Example: pagegate rotate tls new.pem new.key --tls-cert /etc/pagegate/tls.pem --tls-key /etc/pagegate/tls.key
    """
    pair = ServerTls.load(new_certificate, new_key)
    if not dry_run:
        put_in_place(pair, tls_cert, tls_key)
    if as_json:
        click.echo(
            json.dumps({"in_force": not dry_run, "subject": pair.subject, "not_after": pair.expires_at.isoformat()})
        )
    else:
        said = "would be put in force" if dry_run else "in force"
        click.echo(f"{pair.subject}, until {pair.expires_at:%Y-%m-%d}: {said}")


def _against(plan: Rotation) -> list[str]:
    """What the policy holds against this machine beside what no policy could mend."""
    others = (one for one in plan.verdict.failures if one not in hindrances(plan.verdict))
    return [f"{one.code} {one.field}: expected {one.expected}, found {one.found}" for one in others]


def _as_json(plan: Rotation, against: list[str], *, dry_run: bool) -> dict[str, object]:
    def named(part: Part) -> dict[str, str]:
        return {"part": str(part), "key": part.key}

    return {
        "in_force": not dry_run and not plan.hindrances,
        "changes": plan.changes,
        "leaf": named(plan.leaf.part) | {"source": plan.source, "expires_at": plan.leaf.expires_at.isoformat()},
        "with": [named(one.part) for one in plan.others],
        "outdated": [named(part) for part in plan.outdated],
        "failures": [
            {"code": one.code, "field": one.field, "expected": one.expected, "found": one.found}
            for one in plan.hindrances
        ],
        "policy": against,
        "problems": list(plan.problems),
    }


def _print(plan: Rotation, against: list[str], *, dry_run: bool) -> None:
    for one in plan.hindrances:
        click.echo(f"refused   {one.code} {one.field}: expected {one.expected}, found {one.found}", err=True)
    for problem in plan.problems:
        click.echo(f"note      {problem}", err=True)
    for line in against:
        click.echo(f"policy    {line}", err=True)
    if plan.hindrances:
        click.echo(f"{plan.leaf.part} does not endorse this machine's report; the cache is as it was")
        return
    would = "would be " if dry_run else ""
    for content in (plan.leaf, *plan.others):
        click.echo(f"{would}in force  {content.part}, until {content.expires_at:%Y-%m-%d}")
    for part in plan.outdated:
        click.echo(f"{would}dropped   {part}")
    if not plan.changes:
        click.echo("the certificate is the one the cache had: sessions go on")


def _show_wait(part: Part, seconds: float, why: str) -> None:
    click.echo(f"{part}: {seconds:.0f} s: {why}", err=True)
