"""The nouns of remote attestation, by the terms of RFC 9334. Pure data: no I/O, no platform rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class EvidenceType(StrEnum):
    """Kinds of evidence; the values are stable and appear in policies and JSON."""

    SEV_SNP = "sev-snp"
    SGX = "sgx"
    TDX = "tdx"
    CCA = "cca"
    NITRO = "nitro"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one platform says of itself, with the certificates it sent along (DER, any order)."""

    type: EvidenceType
    report: bytes
    certificates: tuple[bytes, ...] = ()
    attachments: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """One check that did not hold."""

    code: str
    """Stable reason code, for example SNP_TCB_BELOW_FLOOR."""
    field: str
    """The field of the evidence, endorsement or policy that was checked."""
    expected: str
    found: str
    source: str
    """Document and section that asks for this check."""
    hint: str = ""
    """What the operator can do about it."""


class AccessMode(StrEnum):
    """What an identity may do with a region."""

    READ = "read"
    WRITE = "write"
    READ_WRITE = "read-write"

    def allows(self, wanted: AccessMode) -> bool:
        """True when this grant covers `wanted`."""
        return self in (wanted, AccessMode.READ_WRITE)


@dataclass(frozen=True, slots=True)
class Claims:
    """What verified evidence says, platform-neutral; `details` has every field by its own name."""

    type: EvidenceType
    measurement: bytes
    host_data: bytes
    report_data: bytes
    platform_id: str
    """Chip or platform identity as hex, empty when masked."""
    details: Mapping[str, object]
    facts: object = field(default=None, repr=False, compare=False)
    """The platform's own typed facts, kept so that a new policy can be applied without new evidence."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of an appraisal. `failures` lists every failed check, not only the first."""

    accepted: bool
    simulated: bool
    """True when the trust anchor is a simulated platform's root: the evidence proves nothing."""
    failures: tuple[Failure, ...]
    claims: Claims | None
    """None when the evidence could not be parsed or its signature does not verify."""
    identity: str | None = None
    """Name of the policy identity that matched; None when none did or no policy was given."""
    grants: Mapping[str, AccessMode] = field(default_factory=dict)
    """Region name (or "*") -> what this identity may do with it."""
    appraised_at: datetime | None = None
    policy_digest: str = ""
    """SHA-256 (hex) of the policy file in force; empty when there is none and the safe defaults apply."""
    warnings: tuple[Failure, ...] = ()
    """What did not hold but the policy does not insist on, for example a revocation list that is not to be had."""


class KeyKind(StrEnum):
    """Which kind of endorsement key signed a report (56860, SIGNING_KEY)."""

    VCEK = "vcek"
    VLEK = "vlek"


@dataclass(frozen=True, slots=True)
class EndorsementRequest:
    """Which endorsements an SNP report needs."""

    product: str
    """Milan, Genoa or Turin: the KDS product line whose root certifies the chip."""
    kind: KeyKind
    chip_id: bytes
    """64 bytes as in the report; all zero when masked."""
    reported_tcb: bytes
    """REPORTED_TCB, 8 bytes in file order."""
    need_leaf: bool = True
    """False when the evidence brought the leaf: the source need not spend its time on it."""
    need_chain: bool = True
    """False when the evidence brought ASK or ASVK, and ARK."""


@dataclass(frozen=True, slots=True)
class Endorsements:
    """Certificates and a revocation list, DER. Nothing here is trusted until verified."""

    leaf: bytes | None
    chain: tuple[bytes, ...]
    """ASK or ASVK and ARK, any order."""
    crl: bytes | None
    source: str
    """Where they came from, for the operator: "evidence", "directory ...", "cache", "kds ..."."""
    fetched_at: datetime | None = None
    """When the CRL was fetched; None when that is not known."""
    problems: tuple[str, ...] = ()
    """Why parts are missing or old, for the operator."""


class EndorsementSource(Protocol):
    """Where endorsements come from. Raises EndorsementError when a needed leaf or chain is not to be had."""

    def find(self, request: EndorsementRequest) -> Endorsements:
        """Returns what this source has for `request`; a CRL or a part not needed that it lacks is None or
        empty, and `problems` says why."""
        ...


Stages = Callable[[str], AbstractContextManager[object]]
"""Called as `with stages(name):` around each stage of an appraisal, for whoever times them: "endorsements", "chain",
"signature" and "policy"."""

_UNTIMED: AbstractContextManager[object] = nullcontext()


def untimed(_name: str) -> AbstractContextManager[object]:
    """The stages of an appraisal that nobody times."""
    return _UNTIMED


class Appraiser(Protocol):
    """Decides whether evidence is believed."""

    def appraise(self, evidence: Evidence, *, report_data: bytes | None, now: datetime) -> Verdict:
        """Runs all checks. `report_data` is the 64-byte binding required, None to skip that check
        (offline inspection only). Never raises for bad evidence: that is a rejecting Verdict."""
        ...
