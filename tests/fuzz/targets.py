"""What every input must do, however hostile: give a typed value or a typed error, and never be believed.

Each target takes bytes and raises nothing; an exception or a failed assertion is a finding. `fuzz_evidence.py`
drives them by coverage, `test_fuzz.py` for a short while in CI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from pagegate.errors import EndorsementError, EvidenceError, PolicyError
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.model import EndorsementRequest, Endorsements, Evidence, EvidenceType
from pagegate.evidence.policy import parse_policy
from pagegate.evidence.snp.anchors import amd_anchors
from pagegate.evidence.snp.certificate import parse_amd_extensions, parse_certificate, split_certificates
from pagegate.evidence.snp.describe import describe_report
from pagegate.evidence.snp.report import REPORT_BYTES, SIGNED_BYTES, parse_report
from pagegate.evidence.snp.revocation import parse_crl
from pagegate.evidence.snp.table import ATTACHMENT, parse_table
from vectors import SnpVector, snp_vectors

NOW = datetime(2026, 6, 1, tzinfo=UTC)


class _Nothing:
    def find(self, request: EndorsementRequest) -> Endorsements:
        raise EndorsementError("ENDORSEMENT_OFFLINE", "offline")


@dataclass(frozen=True)
class Base:
    """A genuine report with its leaf: what mutations start from."""

    report: bytes
    leaf: bytes


@cache
def bases() -> tuple[Base, ...]:
    """Real reports whose certificates are valid at NOW."""
    names = ("milan-v2-automata", "milan-v3-oak-cb", "genoa-v5-oak", "turin-v5-oak")
    found: list[SnpVector] = [one for one in snp_vectors(genuine=True) if one.name in names]
    return tuple(Base(one.report, one.certificates[0]) for one in found)


@cache
def _appraiser() -> EvidenceAppraiser:
    return EvidenceAppraiser(None, anchors=amd_anchors(), endorsements=_Nothing())


def mutated(original: bytes, edits: bytes) -> bytes:
    """`original` with each edit done: two bytes of offset, one byte to XOR."""
    changed = bytearray(original)
    for at in range(0, len(edits) - 2, 3):
        changed[int.from_bytes(edits[at : at + 2], "big") % len(changed)] ^= edits[at + 2]
    return bytes(changed)


def appraise(data: bytes) -> None:
    """A mutated genuine report is refused unless what is signed is what was signed."""
    base = bases()[data[0] % len(bases())] if data else bases()[0]
    report = mutated(base.report, data[1:])
    verdict = _appraiser().appraise(Evidence(EvidenceType.SEV_SNP, report, (base.leaf,)), report_data=None, now=NOW)
    changed = report[:SIGNED_BYTES] != base.report[:SIGNED_BYTES]
    assert not (changed and (verdict.accepted or verdict.claims is not None))
    assert verdict.accepted or report != base.report


def appraise_certificate(data: bytes) -> None:
    """A genuine report with a mutated leaf, or any leaf, is refused."""
    base = bases()[data[0] % len(bases())] if data else bases()[0]
    leaf = mutated(base.leaf, data[1:])
    table = data[1:] if data[:1] > b"\x7f" else b""
    evidence = Evidence(EvidenceType.SEV_SNP, base.report, (leaf,), {ATTACHMENT: table})
    verdict = _appraiser().appraise(evidence, report_data=None, now=NOW)
    assert not verdict.accepted or leaf == base.leaf


def report(data: bytes) -> None:
    """Any bytes: a report that serialises back, or a typed error."""
    with suppress(EvidenceError):
        parsed = parse_report(data[:REPORT_BYTES].ljust(REPORT_BYTES, b"\0") if data[:1] < b"\x10" else data)
        assert parse_report(parsed.to_bytes()) == parsed
        describe_report(parsed)


def table(data: bytes) -> None:
    """Any bytes: entries that lie within them, or a typed error."""
    with suppress(EvidenceError):
        assert sum(len(entry.data) for entry in parse_table(data)) <= 32 * len(data)


def certificate(data: bytes) -> None:
    """Any bytes, and mutated real certificates: parsed or a typed error."""
    for candidate in (data, mutated(bases()[0].leaf, data), mutated(bases()[-1].leaf, data)):
        with suppress(EvidenceError):
            parse_amd_extensions(parse_certificate(candidate))
    with suppress(EvidenceError):
        split_certificates((data,))


def crl(data: bytes) -> None:
    """Any bytes: a revocation list or a typed error."""
    with suppress(EvidenceError):
        parse_crl(data)


def policy(data: bytes) -> None:
    """Any bytes: a policy that pins something, or a typed error."""
    with suppress(PolicyError):
        for identity in parse_policy(data).identities:
            assert identity.measurements or identity.id_key_digests or identity.accept_any_measurement


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    one.__name__: one for one in (appraise, appraise_certificate, report, table, certificate, crl, policy)
}
