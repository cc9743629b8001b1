"""The policy as typed values. What is not said here is the safe choice; docs/policy.md is made from this file."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, field_validator, model_validator

from pagegate.evidence.model import AccessMode, EvidenceType, KeyKind
from pagegate.evidence.policy.values import Bytes16, Bytes32, Bytes48, ChipId, Duration, Version
from pagegate.evidence.snp.product import Product
from pagegate.evidence.snp.report import GuestPolicy, PlatformInfo
from pagegate.evidence.snp.trust import RevocationMode

GUEST_BITS = {
    "smt": GuestPolicy.SMT.value,
    "migration-agent": GuestPolicy.MIGRATE_MA.value,
    "debug": GuestPolicy.DEBUG.value,
    "single-socket": GuestPolicy.SINGLE_SOCKET.value,
    "cxl": GuestPolicy.CXL_ALLOW.value,
    "aes-256-xts": GuestPolicy.MEM_AES_256_XTS.value,
    "rapl-disabled": GuestPolicy.RAPL_DIS.value,
    "ciphertext-hiding": GuestPolicy.CIPHERTEXT_HIDING_DRAM.value,
    "page-swap-disabled": GuestPolicy.PAGE_SWAP_DISABLE.value,
}
PLATFORM_BITS = {
    "smt": PlatformInfo.SMT.value,
    "tsme": PlatformInfo.TSME.value,
    "ecc": PlatformInfo.ECC.value,
    "rapl-disabled": PlatformInfo.RAPL_DIS.value,
    "ciphertext-hiding": PlatformInfo.CIPHERTEXT_HIDING_DRAM.value,
    "alias-check": PlatformInfo.ALIAS_CHECK_COMPLETE.value,
    "tio": PlatformInfo.TIO.value,
}
GuestBit = Literal[
    "smt",
    "migration-agent",
    "debug",
    "single-socket",
    "cxl",
    "aes-256-xts",
    "rapl-disabled",
    "ciphertext-hiding",
    "page-swap-disabled",
]
PlatformBit = Literal["smt", "tsme", "ecc", "rapl-disabled", "ciphertext-hiding", "alias-check", "tio"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
RegionName = Annotated[str, StringConstraints(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._-]{0,63})$")]
Level = Annotated[int, Field(ge=0, le=255)]
Vector = Annotated[int, Field(ge=0, le=2**64 - 1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class TcbFloor(_Section):
    """Least security version of each part that is named."""

    fmc: Level | None = Field(default=None, description="Turin only.")
    bootloader: Level | None = None
    tee: Level | None = None
    snp: Level | None = None
    microcode: Level | None = None

    def parts(self) -> dict[str, int]:
        """The parts that have a floor."""
        return {name: value for name, value in self if value is not None}

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.parts():
            raise ValueError("names no part; give at least one of fmc, bootloader, tee, snp, microcode")
        return self


class TcbFloors(_Section):
    """Floors of one product line."""

    reported: TcbFloor | None = Field(default=None, description="For REPORTED_TCB: what the certificate vouches for.")
    committed: TcbFloor | None = Field(
        default=None, description="For COMMITTED_TCB: below it the host cannot roll back."
    )
    launch: TcbFloor | None = Field(default=None, description="For LAUNCH_TCB: what ran when the guest was started.")

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not any((self.reported, self.committed, self.launch)):
            raise ValueError("has no floor; give at least one of reported, committed, launch")
        return self


class GuestPolicyRule(_Section):
    """Bits of the guest policy, and the least ABI version it asks for."""

    require: tuple[GuestBit, ...] = Field(default=(), description="Bits that must be set.")
    forbid: tuple[GuestBit, ...] = Field(default=("debug", "migration-agent"), description="Bits that must be clear.")
    minimum_abi: Version | None = Field(default=None, description="Least ABI version in the guest policy, major.minor.")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if both := set(self.require) & set(self.forbid):
            raise ValueError(
                f"{', '.join(sorted(both))} is both required and forbidden (debug is forbidden by default)"
            )
        return self


class PlatformRule(_Section):
    """Bits of the platform information."""

    require: tuple[PlatformBit, ...] = Field(default=(), description="Bits that must be set.")
    forbid: tuple[PlatformBit, ...] = Field(default=(), description="Bits that must be clear.")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if both := set(self.require) & set(self.forbid):
            raise ValueError(f"{', '.join(sorted(both))} is both required and forbidden")
        return self


class MitigationRule(_Section):
    """Bits that the mitigation vectors must have; more is fine. Reports before version 5 have none and fail."""

    launch: Vector = Field(default=0, description="Bits LAUNCH_MIT_VECTOR must have.")
    current: Vector = Field(default=0, description="Bits CURRENT_MIT_VECTOR must have.")


class GuestRules(_Section):
    """What a guest must show. A key that is not given is not checked, unless its default says otherwise."""

    measurements: tuple[Bytes48, ...] | None = Field(
        default=None, min_length=1, description="Accepted launch measurements."
    )
    accept_any_measurement: bool = Field(
        default=False, description="Says that no measurement and no ID key is pinned on purpose."
    )
    host_data: tuple[Bytes32, ...] | None = Field(default=None, min_length=1, description="Accepted HOST_DATA.")
    id_key_digests: tuple[Bytes48, ...] | None = Field(
        default=None, min_length=1, description="Accepted ID_KEY_DIGEST."
    )
    author_key_digests: tuple[Bytes48, ...] | None = Field(
        default=None, min_length=1, description="Accepted AUTHOR_KEY_DIGEST; AUTHOR_KEY_EN must be set."
    )
    family_ids: tuple[Bytes16, ...] | None = Field(default=None, min_length=1, description="Accepted FAMILY_ID.")
    image_ids: tuple[Bytes16, ...] | None = Field(default=None, min_length=1, description="Accepted IMAGE_ID.")
    report_ids: tuple[Bytes32, ...] | None = Field(default=None, min_length=1, description="Accepted REPORT_ID.")
    minimum_guest_svn: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(default=0, description="Least GUEST_SVN.")
    guest_policy: GuestPolicyRule = Field(default=GuestPolicyRule(), description="Bits of the guest policy.")
    vmpl: tuple[Annotated[int, Field(ge=0, le=3)], ...] = Field(
        default=(0, 1, 2, 3), min_length=1, description="Accepted privilege levels."
    )
    platform: PlatformRule = Field(default=PlatformRule(), description="Bits of the platform information.")
    tcb: dict[Product, TcbFloors] | None = Field(
        default=None, min_length=1, description="Floors a product line. A report of a line without floors is refused."
    )
    minimum_firmware: Version | None = Field(
        default=None, description="Least SNP firmware version, running and committed: major.minor or major.minor.build."
    )
    provisional_firmware: bool = Field(
        default=False,
        description="Allows running firmware that the host may still roll back (committed below current).",
    )
    mitigations: MitigationRule | None = Field(default=None, description="Bits of the mitigation vectors.")
    signing_keys: tuple[KeyKind, ...] = Field(
        default=(KeyKind.VCEK, KeyKind.VLEK), min_length=1, description="Accepted kinds of signing key."
    )
    csp_ids: tuple[Annotated[str, StringConstraints(min_length=1, max_length=256)], ...] | None = Field(
        default=None, min_length=1, description="Accepted providers of a VLEK. Without it no VLEK is accepted."
    )
    chip_ids: tuple[ChipId, ...] | None = Field(
        default=None,
        min_length=1,
        description="Accepted chips, by the hwID of the verified VCEK (8 bytes on Turin, else 64).",
    )
    denied_chip_ids: tuple[ChipId, ...] = Field(
        default=(), description="Refused chips. A report without a chip id is refused too."
    )
    masked_chip_id: bool = Field(default=False, description="Allows a VCEK report whose chip id the host has masked.")

    @model_validator(mode="after")
    def _uses_every_key(self) -> Self:
        if self.csp_ids and "signing_keys" in self.model_fields_set and KeyKind.VLEK not in self.signing_keys:
            raise ValueError("csp_ids is never used: signing_keys does not accept vlek")
        for product, floors in (self.tcb or {}).items():
            named = [floor for floor in (floors.reported, floors.committed, floors.launch) if floor is not None]
            if product is not Product.TURIN and any(floor.fmc is not None for floor in named):
                raise ValueError(f"tcb.{product} has a floor for fmc, which only Turin has")
        return self


class Identity(GuestRules):
    """One kind of guest by name: what it must show, and what it may do."""

    name: Name = Field(description="Appears in verdicts, logs and metrics.")
    regions: dict[RegionName, AccessMode] = Field(
        {}, description='Region name, or "*" for all others -> read, write or read-write. None: attested, no access.'
    )


class Revocation(_Section):
    """Revocation lists."""

    mode: RevocationMode = Field(
        default=RevocationMode.SOFT,
        description="hard: no fresh list, no access. soft: a warning. off: not asked for.",
    )
    max_age: Duration | None = Field(
        default=None, description="Oldest list that counts as fresh, beside its own nextUpdate."
    )


class Policy(_Section):
    """Whom to believe and what they may do."""

    version: Literal[1] = Field(description="Version of this format.")
    evidence_types: tuple[EvidenceType, ...] = Field(
        default=(EvidenceType.SEV_SNP,), min_length=1, description="Accepted kinds of evidence."
    )
    products: tuple[Product, ...] = Field(default=tuple(Product), min_length=1, description="Accepted product lines.")
    minimum_report_version: Annotated[int, Field(ge=2, le=5)] = Field(2, description="Least version of a report.")
    clock_skew: Duration = Field(default=timedelta(minutes=5), description="Allowed error of clocks.")
    max_evidence_age: Duration | None = Field(default=None, description="After this a session must attest anew.")
    revocation: Revocation = Field(default=Revocation(), description="Revocation lists.")
    defaults: GuestRules = Field(
        default=GuestRules(), description="Keys for every identity that does not give them itself."
    )
    identities: tuple[Identity, ...] = Field(
        min_length=1, max_length=1000, description="Tried in this order; the first whose checks all hold is it."
    )
    _digest: str = PrivateAttr("")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the file; empty for a policy that was not loaded."""
        return self._digest

    @field_validator("identities")
    @classmethod
    def _names_differ(cls, identities: tuple[Identity, ...]) -> tuple[Identity, ...]:
        names = [identity.name for identity in identities]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"name {', '.join(sorted(twice))} is given twice")
        return identities

    @model_validator(mode="after")
    def _applies_defaults(self) -> Self:
        given = {key: getattr(self.defaults, key) for key in self.defaults.model_fields_set}
        for key in given:
            if all(key in identity.model_fields_set for identity in self.identities):
                raise ValueError(f"defaults.{key} is never used: every identity gives its own")
        merged = tuple(
            identity.model_copy(update={k: v for k, v in given.items() if k not in identity.model_fields_set})
            for identity in self.identities
        )
        for identity in merged:
            _check_identity(identity, self.products)
        object.__setattr__(self, "identities", merged)
        return self


def _check_identity(identity: Identity, products: tuple[Product, ...]) -> None:
    where = f"identity {identity.name}"
    pins = identity.measurements or identity.id_key_digests
    if not pins and not identity.accept_any_measurement:
        raise ValueError(
            f"{where} pins neither measurements nor id_key_digests, so any guest would match; "
            "if that is meant, say accept_any_measurement: true"
        )
    if identity.measurements and identity.accept_any_measurement:
        raise ValueError(f"{where}: measurements and accept_any_measurement contradict each other")
    if identity.csp_ids and KeyKind.VLEK not in identity.signing_keys:
        raise ValueError(f"{where}: csp_ids is never used: signing_keys does not accept vlek")
    if unused := set(identity.tcb or ()) - set(products):
        raise ValueError(f"{where}: tcb.{sorted(unused)[0]} is never used: products does not accept it")
