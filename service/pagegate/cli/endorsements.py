"""`pagegate endorsements`: prepare and look after the certificates and CRLs that appraisals need."""

from __future__ import annotations

import json
import re
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import click

from pagegate.cli import EXIT_FAILED, EXIT_NO_ENDORSEMENTS, EXIT_UNREADABLE
from pagegate.config import endorsement_cache
from pagegate.endorsements import (
    Cache,
    EndorsementSettings,
    Part,
    PartStatus,
    Timeouts,
    build_cached_source,
    chain_part,
    crl_part,
    endorsement_status,
    leaf_part,
    request_from_report,
)
from pagegate.endorsements.archive import export as export_parts
from pagegate.endorsements.archive import import_files, read_files
from pagegate.endorsements.cache import Stored
from pagegate.endorsements.part import PRODUCTS, TCB_PARTS, PartKind, hwid_length, pack_tcb
from pagegate.endorsements.settings import KDS_URL
from pagegate.errors import ConfigError, EndorsementError
from pagegate.evidence.model import EndorsementRequest, KeyKind

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


class Span(click.ParamType[float]):
    """A time such as 90d, 12h or 30s; seconds when there is no unit."""

    name = "span"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhdw]?)", str(value))
        if match is None:
            self.fail(f"{value!r} is not a time such as 90d, 12h, 30m or 45s", param, ctx)
        return float(match[1]) * _UNITS[match[2] or "s"]


class Size(click.ParamType[int]):
    """A size such as 10M; bytes when there is no unit."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Returns bytes."""
        match = re.fullmatch(r"(\d{1,12})([kmg]?)(?:i?b)?", str(value).lower())
        if match is None:
            self.fail(f"{value!r} is not a size such as 500K, 10M or 1G", param, ctx)
        return int(match[1]) * _SIZES[match[2]]


_cache_option = click.option(
    "--cache",
    "cache_path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=endorsement_cache,
    show_default="$PAGEGATE_ENDORSEMENT_CACHE, else endorsements.sqlite in the state directory, as serve and send",
    help="The cache file (SQLite, shared by all pagegate processes of the machine).",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


@click.group()
def command() -> None:
    """Fetch, carry and look after certificates and revocation lists.

    Evidence can be appraised without a network when the cache holds its VCEK or VLEK, the chain (ASK or
    ASVK, and ARK) and the CRL. Nothing in the cache is trusted: each appraisal verifies it anew.

    \b
    An air-gapped site:
      pagegate endorsements fetch report.bin           on a machine with a network
      pagegate endorsements export ./endorsements      copy the directory across
      pagegate endorsements import ./endorsements      on the machine without
      pagegate endorsements list
    """


@command.command()
@click.argument("reports", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--product", type=click.Choice(PRODUCTS, case_sensitive=False), help="Asked for by version 2 reports.")
@click.option("--kind", type=click.Choice([k.value for k in KeyKind], case_sensitive=False), help="Key kind.")
@click.option("--chip-id", help="Chip id, hex: 64 bytes, or 8 on Turin.")
@click.option("--tcb", help="REPORTED_TCB: 16 hex digits in file order, or bl=4,tee=0,snp=24,ucode=219.")
@click.option("--no-leaf", is_flag=True, help="Chain and CRL only.")
@_cache_option
@click.option("--kds-url", default=KDS_URL, envvar="PAGEGATE_KDS_URL", show_default=True, help="KDS or a mirror of it.")
@click.option("--proxy", envvar="PAGEGATE_KDS_PROXY", help="HTTP proxy; else HTTPS_PROXY and NO_PROXY hold.")
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CA of the mirror, PEM.")
@click.option("--interval", type=Span(), default=10.0, show_default="10s", help="Pause between leaf requests.")
@click.option("--timeout", type=Span(), default=120.0, show_default="120s", help="Longest time for one part.")
@click.option("--wait", "patient", is_flag=True, help="Wait for KDS however long it asks (Retry-After, queue).")
@_json_option
def fetch(
    *,
    reports: tuple[Path, ...],
    product: str | None,
    kind: str | None,
    chip_id: str | None,
    tcb: str | None,
    no_leaf: bool,
    cache_path: Path,
    kds_url: str,
    proxy: str | None,
    ca_file: Path | None,
    interval: float,
    timeout: float,
    patient: bool,
    as_json: bool,
) -> None:
    """Fetch what REPORTS need from AMD's KDS into the cache.

    Without REPORTS: the VCEK of --chip-id at --tcb, or only chain and CRL of --product. What the cache has
    and is fresh is not fetched again. KDS gives about one VCEK in 10 seconds to an address: requests wait
    for their turn.

    \b
    Examples:
      pagegate endorsements fetch report.bin
      pagegate endorsements fetch --wait reports/*.bin
      pagegate endorsements fetch --product Genoa
      pagegate endorsements fetch --product Milan --chip-id 3ac3...90a8 --tcb bl=2,tee=0,snp=5,ucode=68

    Exit code 4 when a part is not to be had; the others are kept.
    """
    plan = _plan(reports, product=product, kind=kind, chip_id=chip_id, tcb=tcb, leaf=not no_leaf)
    try:
        settings = EndorsementSettings(
            cache_path=cache_path,
            kds_url=kds_url,
            proxy=proxy,
            ca_file=ca_file,
            timeouts=replace(Timeouts(), total=timeout, crl=timeout),
            patient=patient,
            leaf_interval=interval,
        )
        with _cache_errors():
            source = build_cached_source(settings, on_wait=_show_wait)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    parts = plan.ordered()
    results = [_failed("leaf", error) for error in plan.impossible]
    for result in results:
        click.echo(_fetch_line(result), err=as_json)
    began = time.time()
    try:
        with _cache_errors():
            for number, (part, outcome) in enumerate(source.prewarm(parts), 1):
                result = {"key": part.key} | (
                    _failed(str(part), outcome)
                    if isinstance(outcome, EndorsementError)
                    else _had(outcome, fetched=outcome.fetched_at >= began)
                )
                results.append(result)
                click.echo(f"[{number}/{len(parts)}] {_fetch_line(result)}", err=as_json)
    finally:
        source.close()
    if as_json:
        click.echo(json.dumps({"cache": str(cache_path), "parts": results}, indent=2))
    if any(result["result"] == "failed" for result in results):
        raise click.exceptions.Exit(EXIT_NO_ENDORSEMENTS)


@command.command("import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@_cache_option
@_json_option
def import_(paths: tuple[Path, ...], cache_path: Path, as_json: bool) -> None:
    """Take certificates and CRLs into the cache from directories, tar archives or single files.

    Any file names, DER or PEM: what a file holds decides. A leaf or CRL is taken only when the ASK, ASVK or
    ARK that signed it is imported with it or cached. Files that hold nothing of use are named and passed over.
    The name of a CRL file may hold `vcek` or `vlek` to say which it is for; else it stands for both.

    \b
    Examples:
      pagegate endorsements import ./endorsements
      pagegate endorsements import endorsements.tar.gz
      pagegate endorsements import ask.pem ark.pem vlek.der

    Exit code 3 when nothing could be taken.
    """
    with _open_cache(cache_path) as cache:
        files: list[tuple[str, bytes]] = []
        for path in paths:
            try:
                files += read_files(path)
            except (EndorsementError, OSError, tarfile.TarError) as error:
                _fail(EXIT_UNREADABLE, f"{path}: {error}")
        names = ", ".join(str(path) for path in paths)[:200]
        result = import_files(cache, files, now=time.time(), source=f"import {names}")
    if as_json:
        taken = [{"part": str(part), "key": part.key} for part in result.taken]
        click.echo(json.dumps({"cache": str(cache_path), "taken": taken, "refused": result.refused}, indent=2))
    else:
        for part in result.taken:
            click.echo(f"imported  {part}")
        for why in result.refused:
            click.echo(f"refused   {why}", err=True)
    if not result.taken:
        _fail(EXIT_UNREADABLE, "nothing to import: no leaf, chain or CRL that checks out")


@command.command("list")
@click.option("--expired", is_flag=True, help="Only what has expired.")
@_cache_option
@_json_option
def list_(expired: bool, cache_path: Path, as_json: bool) -> None:
    """List what the cache holds, with age and time to expiry.

    \b
    Examples:
      pagegate endorsements list
      pagegate endorsements list --expired --json
    """
    with _open_cache(cache_path) as cache:
        status = endorsement_status(cache, time.time())
    parts = [part for part in status.parts if not expired or part.expires_in <= 0]
    if as_json:
        document = {
            "cache": str(cache_path),
            "oldest_crl_age": status.oldest_crl_age,
            "next_crl_expiry": status.next_crl_expiry,
            "next_leaf_expiry": status.next_leaf_expiry,
            "next_chain_expiry": status.next_chain_expiry,
            "parts": [_as_json(part) for part in parts],
        }
        click.echo(json.dumps(document, indent=2))
        return
    if not parts:
        click.echo(f"{cache_path}: nothing {'expired' if expired else 'cached'}")
        return
    rows = [("PRODUCT", "KEY", "PART", "CHIP", "TCB", "AGE", "EXPIRES", "SOURCE"), *map(_row, parts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@command.command()
@click.option("--expired", is_flag=True, help="Drop what has expired.")
@click.option("--unused-for", type=Span(), help="Drop leaves not used for so long, for example 90d.")
@click.option("--max-size", type=Size(), help="Drop the least used, leaves first, down to this size, for example 10M.")
@click.option("--all", "everything", is_flag=True, help="Empty the cache.")
@click.option("--dry-run", is_flag=True, help="Say what would go and keep it.")
@_cache_option
@_json_option
def prune(
    *,
    expired: bool,
    unused_for: float | None,
    max_size: int | None,
    everything: bool,
    dry_run: bool,
    cache_path: Path,
    as_json: bool,
) -> None:
    """Drop cached parts by expiry, by time unused or by size.

    \b
    Examples:
      pagegate endorsements prune --expired --unused-for 90d
      pagegate endorsements prune --max-size 10M --dry-run
    """
    if not (expired or unused_for is not None or max_size is not None or everything):
        raise click.UsageError("say what to drop: --expired, --unused-for, --max-size or --all")
    now = time.time()
    with _open_cache(cache_path) as cache:
        doomed = [
            stored.part
            for stored in cache.stored()
            if everything
            or (expired and stored.expires_at <= now)
            or (unused_for is not None and stored.part.kind is PartKind.LEAF and now - stored.used_at >= unused_for)
        ]
        if max_size is not None:
            doomed += [part for part in cache.oversize(max_size, without=doomed) if part not in doomed]
        if not dry_run:
            cache.remove(doomed)
    if as_json:
        dropped = [{"part": str(part), "key": part.key} for part in doomed]
        click.echo(json.dumps({"cache": str(cache_path), "dry_run": dry_run, "dropped": dropped}, indent=2))
        return
    for part in doomed:
        click.echo(f"{'would drop' if dry_run else 'dropped'}  {part}")
    click.echo(f"{len(doomed)} of the cache's parts {'would be' if dry_run else 'were'} dropped")


@command.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@_cache_option
@_json_option
def export(directory: Path, cache_path: Path, as_json: bool) -> None:
    """Write the cache to DIRECTORY as DER and PEM files that `import`, and the directory source, read.

    \b
    Example:
      pagegate endorsements export ./endorsements && tar czf endorsements.tar.gz endorsements
    """
    with _open_cache(cache_path) as cache:
        try:
            written = export_parts(cache, directory)
        except OSError as error:
            _fail(EXIT_FAILED, f"{directory}: {error.strerror or error}")
    if as_json:
        files = [{"part": str(part), "key": part.key, "file": str(path)} for part, path in written]
        click.echo(json.dumps({"directory": str(directory), "files": files}, indent=2))
        return
    for part, path in written:
        click.echo(f"{path}  {part}")
    if not written:
        click.echo(f"{cache_path}: nothing cached")


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to fetch, chains and CRLs before leaves, and leaves that cannot exist, with the reason."""

    parts: dict[Part, None] = field(default_factory=dict)
    impossible: list[EndorsementError] = field(default_factory=list)

    def add(self, request: EndorsementRequest, *, leaf: bool) -> None:
        """Raises EndorsementError for a request that makes no sense."""
        self.parts[chain_part(request.product, request.kind)] = None
        self.parts[crl_part(request.product, request.kind)] = None
        if leaf:
            try:
                self.parts[leaf_part(request)] = None
            except EndorsementError as error:
                if error.reason != "ENDORSEMENT_CHIP_MASKED":
                    raise
                self.impossible.append(error)

    def ordered(self) -> list[Part]:
        """Leaves last: a leaf is checked against its chain."""
        return sorted(self.parts, key=lambda part: part.kind is PartKind.LEAF)


def _plan(
    reports: tuple[Path, ...],
    *,
    product: str | None,
    kind: str | None,
    chip_id: str | None,
    tcb: str | None,
    leaf: bool,
) -> _Plan:
    if reports and (chip_id or tcb or kind):
        raise click.UsageError("either REPORTS, or --chip-id, --tcb and --kind")
    plan = _Plan()
    if reports:
        for path in reports:
            try:
                plan.add(request_from_report(path.read_bytes(), product), leaf=leaf)
            except (EndorsementError, OSError) as error:
                _fail(EXIT_UNREADABLE, f"{path}: {error}")
        return plan
    if product is None:
        raise click.UsageError("name a report file, or --product")
    if (chip_id is None) != (tcb is None):
        raise click.UsageError("--chip-id and --tcb go together")
    if chip_id is not None and tcb is not None:
        request = EndorsementRequest(product, KeyKind(kind or "vcek"), _chip_id(chip_id, product), _tcb(tcb, product))
        try:
            plan.add(request, leaf=leaf)
        except EndorsementError as error:
            raise click.UsageError(error.message) from error
        return plan
    for each in [KeyKind(kind)] if kind else list(KeyKind):
        plan.parts.update({chain_part(product, each): None, crl_part(product, each): None})
    return plan


def _chip_id(text: str, product: str) -> bytes:
    try:
        chip_id = bytes.fromhex(text)
    except ValueError:
        raise click.BadParameter("not hex", param_hint="--chip-id") from None
    if len(chip_id) not in (64, hwid_length(product)):
        raise click.BadParameter(f"{len(chip_id)} bytes; {product} has {hwid_length(product)}", param_hint="--chip-id")
    return chip_id.ljust(64, b"\0")


def _tcb(text: str, product: str) -> bytes:
    if re.fullmatch(r"[0-9a-fA-F]{16}", text):
        return bytes.fromhex(text)
    names = [name for name in TCB_PARTS if name != "fmc" or product == "Turin"]
    levels = dict(re.findall(r"(?:^|,)\s*(\w+)=(\d{1,3})", text))
    if sorted(levels) != sorted(names) or any(int(level) > 255 for level in levels.values()):
        wanted = ",".join(f"{name}=N" for name in names)
        raise click.BadParameter(f"{text!r}: expected 16 hex digits or {wanted}, N 0..255", param_hint="--tcb")
    return pack_tcb(product, {name: int(level) for name, level in levels.items()})


@contextmanager
def _cache_errors() -> Iterator[None]:
    try:
        yield
    except EndorsementError as error:
        _fail(EXIT_FAILED, str(error))


@contextmanager
def _open_cache(path: Path) -> Iterator[Cache]:
    with _cache_errors():
        cache = Cache(path, max_bytes=EndorsementSettings().cache_max_bytes)
        try:
            yield cache
        finally:
            cache.close()


def _fail(code: int, message: str) -> NoReturn:
    click.echo(f"pagegate endorsements: {message}", err=True)
    raise click.exceptions.Exit(code)


def _show_wait(part: Part, seconds: float, why: str) -> None:
    click.echo(f"      {part}: {seconds:.0f} s: {why}", err=True)


def _failed(part: str, error: EndorsementError) -> dict[str, str]:
    return {"part": part, "result": "failed", "reason": error.reason, "message": error.message}


def _had(stored: Stored, *, fetched: bool) -> dict[str, str]:
    how = "fetched" if fetched else "cached"
    return {"part": str(stored.part), "result": how, "expires_at": _iso(stored.expires_at), "source": stored.source}


def _fetch_line(result: dict[str, str]) -> str:
    if result["result"] == "failed":
        return f"failed   {result['part']}\n         {result['reason']}: {result['message']}"
    return f"{result['result']:<8} {result['part']} (until {result['expires_at'][:10]})"


def _row(part: PartStatus) -> tuple[str, ...]:
    chip = f"{part.chip_id[:16]}.." if len(part.chip_id) > 16 else part.chip_id
    expires = _span(part.expires_in) if part.expires_in > 0 else f"EXPIRED {_span(-part.expires_in)} ago"
    return (
        *(part.product, part.key_kind.value, part.kind.value, chip or "-", part.tcb or "-"),
        *(_span(part.age), expires, part.source),
    )


def _span(seconds: float) -> str:
    for unit in ("d", "h", "m"):
        if seconds >= 2 * _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def _as_json(part: PartStatus) -> dict[str, object]:
    times = {name: _iso(getattr(part, name)) for name in ("made_at", "expires_at", "fetched_at", "used_at")}
    return asdict(part) | times


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
