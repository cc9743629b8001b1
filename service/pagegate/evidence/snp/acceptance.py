"""The report against one identity of the policy, and against what the policy says of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pagegate.evidence.checks import Check, Finding, check
from pagegate.evidence.model import EvidenceType, KeyKind
from pagegate.evidence.policy.model import GUEST_BITS, PLATFORM_BITS, GuestRules, Policy, TcbFloors
from pagegate.evidence.snp.chain import Chain
from pagegate.evidence.snp.product import TURIN_CHIP_ID_BYTES, Product
from pagegate.evidence.snp.report import FirmwareVersion, GuestPolicy, Report, SigningKey
from pagegate.evidence.snp.structure import MITIGATIONS_VERSION
from pagegate.evidence.snp.tcb import Tcb

_REPORT = "56860, ATTESTATION_REPORT"
_TCB = "56860, TCB_VERSION"
_GUEST_POLICY = "56860, Guest Policy"
_SHOWN_VALUES = 4


@dataclass(frozen=True, slots=True)
class GuestSubject:
    """A report with the rules it is held against."""

    report: Report
    product: Product | None
    chain: Chain | None
    rules: GuestRules

    @property
    def chip_id(self) -> bytes:
        """The chip by its certificate, so that masking does not hide it; else as the report says; else empty."""
        if self.chain is not None and self.chain.extensions.hwid is not None:
            return self.chain.extensions.hwid
        size = self.product.hwid_bytes if self.product is not None else len(self.report.chip_id)
        return self.report.chip_id[:size] if any(self.report.chip_id) else b""

    @property
    def csp_id(self) -> str | None:
        return self.chain.extensions.csp_id if self.chain is not None else None


def _one_of(field: str, accepted: Sequence[bytes] | None, found: bytes, hint: str = "") -> Iterator[Finding]:
    if accepted is not None and found not in accepted:
        shown = [value.hex() for value in accepted[:_SHOWN_VALUES]]
        more = f" or {len(accepted) - _SHOWN_VALUES} more" if len(accepted) > _SHOWN_VALUES else ""
        yield Finding(field, " or ".join(shown) + more, found.hex(), hint)


@check("SNP_MEASUREMENT", _REPORT + ", MEASUREMENT")
def measurement_is_listed(subject: GuestSubject) -> Iterator[Finding]:
    """The launch measurement is one of those listed."""
    hint = "pagegate measure computes it from OVMF, kernel, initrd and command line"
    yield from _one_of("measurement", subject.rules.measurements, subject.report.measurement, hint)


@check("SNP_HOST_DATA", _REPORT + ", HOST_DATA")
def host_data_is_listed(subject: GuestSubject) -> Iterator[Finding]:
    """The host data is one of those listed."""
    yield from _one_of("host_data", subject.rules.host_data, subject.report.host_data)


@check("SNP_ID_KEY", _REPORT + ", ID_KEY_DIGEST")
def id_key_is_listed(subject: GuestSubject) -> Iterator[Finding]:
    """The digest of the ID key is one of those listed."""
    yield from _one_of("id_key_digest", subject.rules.id_key_digests, subject.report.id_key_digest)


@check("SNP_AUTHOR_KEY", _REPORT + ", AUTHOR_KEY_DIGEST")
def author_key_is_listed(subject: GuestSubject) -> Iterator[Finding]:
    """The author key is enabled and its digest one of those listed."""
    accepted = subject.rules.author_key_digests
    if accepted is not None and not subject.report.author_key_enabled:
        yield Finding("author_key_en", "1, as author keys are listed", "0")
    yield from _one_of("author_key_digest", accepted, subject.report.author_key_digest)


@check("SNP_FAMILY_ID", _REPORT + ", FAMILY_ID")
def family_id_is_listed(subject: GuestSubject) -> Iterator[Finding]:
    """The family id is one of those listed."""
    yield from _one_of("family_id", subject.rules.family_ids, subject.report.family_id)


@check("SNP_IMAGE_ID", _REPORT + ", IMAGE_ID")
def image_id_is_listed(subject: GuestSubject) -> Iterator[Finding]:
    """The image id is one of those listed."""
    yield from _one_of("image_id", subject.rules.image_ids, subject.report.image_id)


@check("SNP_REPORT_ID", _REPORT + ", REPORT_ID")
def report_id_is_listed(subject: GuestSubject) -> Iterator[Finding]:
    """The report id is one of those listed."""
    yield from _one_of("report_id", subject.rules.report_ids, subject.report.report_id)


@check("SNP_GUEST_SVN", _REPORT + ", GUEST_SVN")
def guest_svn_is_high_enough(subject: GuestSubject) -> Iterator[Finding]:
    """The guest's security version is at least the least accepted."""
    least, found = subject.rules.minimum_guest_svn, subject.report.guest_svn
    if found < least:
        yield Finding("guest_svn", f"at least {least}", str(found))


@check("SNP_GUEST_POLICY", _GUEST_POLICY)
def guest_policy_is_accepted(subject: GuestSubject) -> Iterator[Finding]:
    """Required bits of the guest policy are set, forbidden ones are clear; debug and migration are forbidden."""
    rule, policy = subject.rules.guest_policy, subject.report.policy
    yield from _bits("policy", GUEST_BITS, policy, rule.require, rule.forbid)


@check("SNP_GUEST_ABI", _GUEST_POLICY)
def guest_abi_is_high_enough(subject: GuestSubject) -> Iterator[Finding]:
    """The ABI version that the guest policy asks for is at least the least accepted."""
    least = subject.rules.guest_policy.minimum_abi
    major, minor = subject.report.abi
    if least is not None and (major, minor) < (least.major, least.minor):
        yield Finding("policy ABI", f"at least {least.major}.{least.minor}", f"{major}.{minor}")


@check("SNP_PLATFORM_INFO", _REPORT + ", PLATFORM_INFO")
def platform_is_accepted(subject: GuestSubject) -> Iterator[Finding]:
    """Required bits of the platform information are set, forbidden ones are clear."""
    rule, info = subject.rules.platform, subject.report.platform_info
    yield from _bits("platform_info", PLATFORM_BITS, info, rule.require, rule.forbid)


def _bits(
    field: str, names: Mapping[str, int], value: int, require: Iterable[str], forbid: Iterable[str]
) -> Iterator[Finding]:
    for name in require:
        if not value & names[name]:
            yield Finding(f"{field} {name}", "set", "clear")
    for name in forbid:
        if value & names[name]:
            hint = "the host can read this guest" if names[name] == GuestPolicy.DEBUG else ""
            yield Finding(f"{field} {name}", "clear", "set", hint)


@check("SNP_VMPL", _REPORT + ", VMPL")
def vmpl_is_listed(subject: GuestSubject) -> Iterator[Finding]:
    """The privilege level that asked for the report is one of those listed."""
    accepted, found = subject.rules.vmpl, subject.report.vmpl
    if found not in accepted:
        yield Finding("vmpl", " or ".join(map(str, accepted)), str(found))


@check("SNP_TCB_BELOW_FLOOR", _TCB)
def tcb_is_at_floor(subject: GuestSubject) -> Iterator[Finding]:
    """Each part of the reported, committed and launch TCB is at least its floor."""
    floors = _floors(subject)
    if floors is None or subject.product is None:
        return
    for name, floor, data in (
        ("reported_tcb", floors.reported, subject.report.reported_tcb),
        ("committed_tcb", floors.committed, subject.report.committed_tcb),
        ("launch_tcb", floors.launch, subject.report.launch_tcb),
    ):
        if floor is not None:
            tcb, least = Tcb.from_bytes(subject.product, data), floor.parts()
            for part in tcb.below(least):
                hint = "the host's firmware is too old" if name != "launch_tcb" else "start the guest anew"
                yield Finding(f"{name} {part}", f"at least {least[part]}", str(tcb.parts[part]), hint)


@check("SNP_TCB_FLOOR_MISSING", _TCB)
def floor_is_there(subject: GuestSubject) -> Iterator[Finding]:
    """When there are TCB floors, there are some for the report's product line."""
    if subject.rules.tcb is not None and _floors(subject) is None:
        found = str(subject.product or "unknown product")
        yield Finding("tcb", " or ".join(sorted(subject.rules.tcb)), found, "add floors for this product line")


def _floors(subject: GuestSubject) -> TcbFloors | None:
    return (subject.rules.tcb or {}).get(subject.product) if subject.product is not None else None


@check("SNP_FIRMWARE_VERSION", _REPORT + ", CURRENT_* and COMMITTED_* version")
def firmware_is_new_enough(subject: GuestSubject) -> Iterator[Finding]:
    """The running and the committed SNP firmware are at least the least accepted version."""
    least = subject.rules.minimum_firmware
    versions = (
        ("current_version", subject.report.current_version),
        ("committed_version", subject.report.committed_version),
    )
    for name, found in versions:
        if least is not None and found < least:
            yield Finding(name, f"at least {least}", str(found))


@check("SNP_FIRMWARE_PROVISIONAL", "56860, SNP_COMMIT and DOWNLOAD_FIRMWARE_EX")
def firmware_is_committed(subject: GuestSubject) -> Iterator[Finding]:
    """Committed firmware and TCB equal the current ones, or are at most those where provisional firmware is allowed."""
    report, allowed = subject.report, subject.rules.provisional_firmware
    current, committed = report.current_version, report.committed_version
    if not _committed(current, committed, allowed=allowed):
        yield Finding("committed_version", _at_most(current, allowed=allowed), str(committed), _PROVISIONAL_HINT)
    if subject.product is None:
        return
    running = Tcb.from_bytes(subject.product, report.current_tcb)
    fixed = Tcb.from_bytes(subject.product, report.committed_tcb)
    for part, level in fixed.parts.items():
        if level > running.parts[part] or (not allowed and level != running.parts[part]):
            expected = _at_most(running.parts[part], allowed=allowed)
            yield Finding(f"committed_tcb {part}", expected, str(level), _PROVISIONAL_HINT)


_PROVISIONAL_HINT: Final = "the host can roll it back: let it SNP_COMMIT, or allow provisional_firmware"


def _committed(current: FirmwareVersion, committed: FirmwareVersion, *, allowed: bool) -> bool:
    return committed <= current if allowed else committed == current


def _at_most(current: object, *, allowed: bool) -> str:
    return f"at most {current}" if allowed else f"{current}, as current"


@check("SNP_MITIGATIONS", _REPORT + ", LAUNCH_MIT_VECTOR and CURRENT_MIT_VECTOR")
def mitigations_are_there(subject: GuestSubject) -> Iterator[Finding]:
    """The mitigation vectors have every bit that is asked for."""
    rule, report = subject.rules.mitigations, subject.report
    if rule is None:
        return
    if report.version < MITIGATIONS_VERSION:
        yield Finding("mitigation vectors", "present", f"absent in version {report.version}", "update the firmware")
        return
    for name, wanted, found in (
        ("launch_mit_vector", rule.launch, report.launch_mitigations),
        ("current_mit_vector", rule.current, report.current_mitigations),
    ):
        if wanted & ~found:
            yield Finding(name, f"all of {wanted:#x}", f"{found:#x}, lacks {wanted & ~found:#x}")


@check("SNP_SIGNING_KEY_REFUSED", _REPORT + ", SIGNING_KEY")
def signing_key_is_accepted(subject: GuestSubject) -> Iterator[Finding]:
    """The kind of signing key is accepted."""
    kinds = {SigningKey.VCEK: KeyKind.VCEK, SigningKey.VLEK: KeyKind.VLEK}
    selector = subject.report.signing_key
    found = kinds.get(SigningKey(selector)) if selector in kinds else None
    if found not in subject.rules.signing_keys:
        yield Finding("signing_key", " or ".join(subject.rules.signing_keys), found or str(selector))


@check("SNP_CSP_ID", "57230, cspID")
def provider_is_listed(subject: GuestSubject) -> Iterator[Finding]:
    """A VLEK's provider is one of those listed; without a list no VLEK is accepted."""
    if subject.report.signing_key != SigningKey.VLEK:
        return
    accepted = subject.rules.csp_ids or ()
    if subject.csp_id not in accepted:
        hint = "csp_ids lists the providers whose VLEKs are accepted"
        yield Finding("VLEK cspID", " or ".join(accepted) or "none accepted", subject.csp_id or "not known", hint)


@check("SNP_CHIP_ID", _REPORT + ", CHIP_ID; 57230, hwID")
def chip_is_listed(subject: GuestSubject) -> Iterator[Finding]:
    """The chip is one of those listed, and none of those denied."""
    rules, chip = subject.rules, subject.chip_id
    hint = "" if chip else "a VLEK, or a masked chip id, does not say which chip it is"
    accepted = None if rules.chip_ids is None else tuple(map(_significant, rules.chip_ids))
    yield from _one_of("chip_id", accepted, chip, hint)
    if rules.denied_chip_ids and (not chip or chip in map(_significant, rules.denied_chip_ids)):
        yield Finding("chip_id", "not a denied one", chip.hex() or "none", hint)


def _significant(chip_id: bytes) -> bytes:
    """The bytes a chip has of an id in the report's form: 8 when the other 56 are zero, as on Turin."""
    return chip_id if any(chip_id[TURIN_CHIP_ID_BYTES:]) else chip_id[:TURIN_CHIP_ID_BYTES]


@check("SNP_CHIP_ID_MASKED", "56860, SNP_CONFIG: MASK_CHIP_ID")
def chip_id_is_shown(subject: GuestSubject) -> Iterator[Finding]:
    """A report signed by a VCEK has its chip id, unless masked ones are allowed."""
    vcek = subject.report.signing_key == SigningKey.VCEK
    if vcek and subject.report.chip_id_masked and not subject.rules.masked_chip_id:
        yield Finding("chip_id", "present", "masked", "masked_chip_id: true allows it; the certificate names the chip")


IDENTITY_CHECKS: Final[tuple[Check[GuestSubject], ...]] = (
    measurement_is_listed,
    host_data_is_listed,
    id_key_is_listed,
    author_key_is_listed,
    family_id_is_listed,
    image_id_is_listed,
    report_id_is_listed,
    guest_svn_is_high_enough,
    guest_policy_is_accepted,
    guest_abi_is_high_enough,
    platform_is_accepted,
    vmpl_is_listed,
    tcb_is_at_floor,
    floor_is_there,
    firmware_is_new_enough,
    firmware_is_committed,
    mitigations_are_there,
    signing_key_is_accepted,
    provider_is_listed,
    chip_is_listed,
    chip_id_is_shown,
)


@dataclass(frozen=True, slots=True)
class PolicySubject:
    """A report against what the policy says of all identities."""

    report: Report
    product: Product | None
    policy: Policy


@check("SNP_PRODUCT_REFUSED", "policy products")
def product_is_accepted(subject: PolicySubject) -> Iterator[Finding]:
    """The product line is accepted."""
    if subject.product not in subject.policy.products:
        found = str(subject.product or "unknown")
        yield Finding("product", " or ".join(subject.policy.products), found)


@check("SNP_REPORT_VERSION_REFUSED", "policy minimum_report_version")
def report_version_is_accepted(subject: PolicySubject) -> Iterator[Finding]:
    """The report's version is at least the least accepted."""
    least, found = subject.policy.minimum_report_version, subject.report.version
    if found < least:
        yield Finding("version", f"at least {least}", str(found), "the host's firmware is too old")


@check("EVIDENCE_TYPE_REFUSED", "policy evidence_types")
def evidence_type_is_accepted(subject: PolicySubject) -> Iterator[Finding]:
    """SEV-SNP evidence is accepted."""
    if EvidenceType.SEV_SNP not in subject.policy.evidence_types:
        yield Finding("evidence type", " or ".join(subject.policy.evidence_types), EvidenceType.SEV_SNP)


POLICY_CHECKS: Final[tuple[Check[PolicySubject], ...]] = (
    product_is_accepted,
    report_version_is_accepted,
    evidence_type_is_accepted,
)
