"""What the commands that look at stored evidence share: reading files, and endorsements from files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from pagegate.config import endorsement_cache
from pagegate.endorsements import EndorsementSettings, Timeouts, build_source
from pagegate.errors import EndorsementError, EvidenceError
from pagegate.evidence.model import EndorsementRequest, Endorsements, EndorsementSource, Evidence, EvidenceType
from pagegate.evidence.snp.anchors import TrustAnchor, amd_anchors, simulated_anchor
from pagegate.evidence.snp.certificate import MAX_CERTIFICATES, parse_certificate, split_certificates
from pagegate.evidence.snp.chain import SIMULATED_PREFIX
from pagegate.evidence.snp.product import Product
from pagegate.evidence.snp.revocation import MAX_CRL_BYTES
from pagegate.evidence.snp.table import ATTACHMENT, MAX_TABLE_BYTES

_MAX_FILE_BYTES = 1024 * 1024
_PATIENCE = 45.0
"""Seconds that an operator is kept waiting for one certificate."""
_PEM_CRL = b"-----BEGIN X509 CRL-----"


class UnreadableError(EvidenceError):
    """Input that cannot be read: exit code 3."""

    exit_code = 3


def read_file(path: Path, limit: int = _MAX_FILE_BYTES) -> bytes:
    """The bytes of a file or, for "-", of standard input. Raises UnreadableError."""
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with path.open("rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise UnreadableError("FILE_UNREADABLE", f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit:
        raise UnreadableError("FILE_TOO_LARGE", f"{path} has more than {limit} bytes")
    return data


@dataclass(frozen=True, slots=True)
class GivenEndorsements:
    """What the command line gave; nothing else is looked for."""

    chain: tuple[bytes, ...] = ()
    crl: bytes | None = None

    def find(self, request: EndorsementRequest) -> Endorsements:
        """The chain and CRL given. Raises EndorsementError when a leaf is needed: none can be made up."""
        if request.need_leaf:
            raise EndorsementError(
                "ENDORSEMENT_OFFLINE",
                f"no {request.kind.upper()} certificate fits; give it with --cert, or leave out --offline",
            )
        problems = () if self.crl is not None else ("offline, and no --crl was given",)
        return Endorsements(None, self.chain, self.crl, "command line", problems=problems)


@dataclass(frozen=True, slots=True)
class OnlineEndorsements:
    """What the command line gave first, then the configured sources."""

    given: GivenEndorsements
    online: EndorsementSource

    def find(self, request: EndorsementRequest) -> Endorsements:
        """Asks the configured sources unless the command line has all that is needed, a CRL too."""
        if not request.need_leaf and self.given.crl is not None:
            return self.given.find(request)
        found = self.online.find(request)
        chain = (*self.given.chain, *found.chain)
        crl = self.given.crl if self.given.crl is not None else found.crl
        return Endorsements(found.leaf, chain, crl, found.source, found.fetched_at, found.problems)


def evidence_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name evidence and endorsements."""
    path = click.Path(path_type=Path)
    for option in reversed(
        (
            click.option("--cert", "certs", type=path, multiple=True, help="VCEK or VLEK, DER or PEM."),
            click.option("--chain", "chains", type=path, multiple=True, help="ASK or ASVK, and ARK; PEM or DER."),
            click.option("--table", type=path, help="Certificate table of an extended report, as the host gave it."),
            click.option("--crl", type=path, help="Revocation list of the root, DER or PEM."),
            click.option("--offline", is_flag=True, help="Use no network and no cache: only files given here."),
            click.option("--allow-simulated", is_flag=True, help="Accept simulated evidence, which proves nothing."),
            click.option(
                "--simulated-root", type=path, help="Root of a simulated platform: its ark.pem, or its directory."
            ),
        )
    ):
        command = option(command)
    return command


def read_evidence(report: Path, certs: Sequence[Path], chains: Sequence[Path], table: Path | None) -> Evidence:
    """Evidence as if a peer had sent it. Raises UnreadableError."""
    certificates = tuple(read_file(one) for one in (*certs, *chains))
    try:
        for certificate in split_certificates(certificates[:MAX_CERTIFICATES]):
            parse_certificate(certificate)
    except EvidenceError as error:
        raise UnreadableError(error.reason, error.message) from error
    attachments = {ATTACHMENT: read_file(table, MAX_TABLE_BYTES)} if table is not None else {}
    return Evidence(EvidenceType.SEV_SNP, read_file(report), certificates, attachments)


def read_crl(path: Path | None) -> bytes | None:
    """A CRL as DER. Raises UnreadableError."""
    if path is None:
        return None
    data = read_file(path, MAX_CRL_BYTES)
    if not data.lstrip().startswith(_PEM_CRL):
        return data
    body = data.replace(b"X509 CRL", b"CERTIFICATE")
    try:
        return split_certificates((body,))[0]
    except EvidenceError as error:
        raise UnreadableError("SNP_CRL_MALFORMED", f"{path}: {error.message}") from error


def anchors_with(simulated_root: Path | None) -> tuple[TrustAnchor, ...]:
    """AMD's anchors, and the simulated root's if one is named. Raises UnreadableError."""
    if simulated_root is None:
        return amd_anchors()
    path = simulated_root / "ark.pem" if simulated_root.is_dir() else simulated_root
    try:
        root = split_certificates((read_file(path),))[0]
        name = parse_certificate(root).subject_name
        if not name.startswith(f"{SIMULATED_PREFIX}ARK-"):
            raise EvidenceError("SIMULATED_ROOT_INVALID", f"its name is {name}, not {SIMULATED_PREFIX}ARK-<product>")
        product = Product(name.removeprefix(f"{SIMULATED_PREFIX}ARK-"))
    except (EvidenceError, ValueError) as error:
        raise UnreadableError("SIMULATED_ROOT_INVALID", f"{path} is no simulated root: {error}") from error
    return (*amd_anchors(), simulated_anchor(product, root))


def endorsements_from(crl: Path | None, *, offline: bool) -> EndorsementSource:
    """Where endorsements come from beside the evidence itself. Raises EndorsementError, UnreadableError."""
    given = GivenEndorsements(crl=read_crl(crl))
    if offline:
        return given
    settings = EndorsementSettings(cache_path=endorsement_cache(), timeouts=Timeouts(total=_PATIENCE))
    return OnlineEndorsements(given, build_source(settings))


def parse_time(_context: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    """An ISO 8601 time; without a zone it is UTC."""
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a time such as 2026-01-31T12:00:00Z") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
