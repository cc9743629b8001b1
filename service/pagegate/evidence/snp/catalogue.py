"""Every reason code an SEV-SNP appraisal can give, with what it demands and who asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pagegate.evidence.appraisal import BINDING_CHECKS, SESSION_CHECKS
from pagegate.evidence.checks import Check
from pagegate.evidence.snp.acceptance import IDENTITY_CHECKS, POLICY_CHECKS
from pagegate.evidence.snp.chain import CHAIN_CHECKS
from pagegate.evidence.snp.endorsement import ENDORSEMENT_CHECKS
from pagegate.evidence.snp.structure import STRUCTURE_CHECKS
from pagegate.evidence.snp.trust import FRESHNESS_CHECKS, TRUST_CHECKS


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the table in docs/verification.md."""

    stage: str
    code: str
    summary: str
    source: str


_REPORT = "56860, ATTESTATION_REPORT"
_BORDER = (
    Entry("Parsing", "SNP_REPORT_SIZE", "The report has exactly 1184 bytes.", _REPORT),
    Entry("Parsing", "SNP_REPORT_VERSION", "The report's version is 2, 3, 4 or 5.", _REPORT),
    Entry("Parsing", "SNP_CERT_MALFORMED", "Certificates are DER or PEM of AMD's profile.", "RFC 5280; 57230"),
    Entry(
        "Parsing",
        "SNP_TABLE_MALFORMED",
        "The certificate table's entries are distinct and lie within it.",
        "56421, SNP Extended Guest Request",
    ),
    Entry("Finding", "SNP_ENDORSEMENT_MISSING", "There are a leaf, an ASK or ASVK, and an ARK.", "57230, KDS"),
)
_STAGES: tuple[tuple[str, tuple[Check[Any], ...]], ...] = (
    ("Report", STRUCTURE_CHECKS),
    ("Chain", CHAIN_CHECKS),
    ("Endorsement", ENDORSEMENT_CHECKS),
    ("Binding", BINDING_CHECKS),
    ("Trust now", TRUST_CHECKS),
    ("Revocation list", FRESHNESS_CHECKS),
    ("Policy, all", POLICY_CHECKS),
    ("Policy, identity", IDENTITY_CHECKS),
    ("Session", SESSION_CHECKS),
)


def entries() -> Iterator[Entry]:
    """All entries, in the order in which the checks run."""
    yield from _BORDER
    for stage, checks in _STAGES:
        for one in checks:
            yield Entry(stage, one.code, one.summary, one.source)
