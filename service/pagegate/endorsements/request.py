"""From a report to what must be fetched for it, and the KDS address of each part (57230, KDS interface)."""

from __future__ import annotations

from urllib.parse import quote

from pagegate.endorsements.part import TCB_PARTS, Part, PartKind, hwid_length, leaf_part, tcb_levels
from pagegate.endorsements.settings import KDS_URL
from pagegate.errors import EndorsementError
from pagegate.evidence.model import EndorsementRequest, KeyKind

REPORT_LENGTH = 1184

_FAMILY_MODELS = (
    (0x19, range(0x00, 0x10), "Milan"),
    (0x19, range(0x10, 0x20), "Genoa"),
    (0x19, range(0xA0, 0xB0), "Genoa"),
    (0x1A, range(0x00, 0x12), "Turin"),
)


def vcek_url(request: EndorsementRequest, base: str = KDS_URL) -> str:
    """The URL of the one VCEK that fits `request`, for messages and for fetching.

    Raises EndorsementError when KDS cannot have it: ENDORSEMENT_CHIP_MASKED, ENDORSEMENT_VLEK_NOT_SERVED,
    ENDORSEMENT_REQUEST_INVALID.
    """
    return part_url(leaf_part(request), base)


def part_url(part: Part, base: str = KDS_URL) -> str:
    """The KDS URL of `part`."""
    root = f"{base.rstrip('/')}/{part.key_kind.value}/v1/{quote(part.product)}"
    match part.kind:
        case PartKind.CHAIN:
            return f"{root}/cert_chain"
        case PartKind.CRL:
            return f"{root}/crl"
    if part.key_kind is KeyKind.VLEK:
        raise vlek_not_served(part)
    levels = tcb_levels(part.product, part.tcb)
    query = "&".join(f"{name}SPL={levels[name]:02}" for name in TCB_PARTS if name in levels)
    return f"{root}/{part.hwid.hex()}?{query}"


def vlek_not_served(part: Part) -> EndorsementError:
    """KDS has VLEK chains and CRLs, but a VLEK goes to its cloud provider only."""
    return EndorsementError(
        "ENDORSEMENT_VLEK_NOT_SERVED",
        f"{part}: AMD gives a VLEK to the cloud provider only; take it from the certificate table of the extended "
        "report (AWS: snpguest certificates, or SNP_GET_EXT_REPORT), or ask the provider, and import it",
    )


def request_from_report(report: bytes, product: str | None = None) -> EndorsementRequest:
    """Reads from a report what endorsements it needs (56860, ATTESTATION_REPORT). Verifies nothing.

    `product` overrides what the report says; version 2 reports say nothing, and only Turin shows in the
    chip id. Raises EndorsementError ENDORSEMENT_REQUEST_INVALID.
    """
    if len(report) != REPORT_LENGTH:
        raise _invalid(f"a report of {len(report)} bytes, expected {REPORT_LENGTH}")
    version = int.from_bytes(report[0:4], "little")
    if not 2 <= version <= 5:
        raise _invalid(f"report version {version}, expected 2 to 5")
    signing_key = int.from_bytes(report[0x48:0x4C], "little") >> 2 & 7
    if signing_key not in (0, 1):
        raise _invalid(f"SIGNING_KEY {signing_key}: no VCEK or VLEK signed this report")
    chip_id = report[0x1A0:0x1E0]
    return EndorsementRequest(
        product=product or _product(version, report[0x188], report[0x189], chip_id),
        kind=KeyKind.VLEK if signing_key else KeyKind.VCEK,
        chip_id=chip_id,
        reported_tcb=report[0x180:0x188],
    )


def _product(version: int, family: int, model: int, chip_id: bytes) -> str:
    if version >= 3:
        for known_family, models, name in _FAMILY_MODELS:
            if family == known_family and model in models:
                return name
        raise _invalid(f"CPU family 0x{family:02x} model 0x{model:02x} is of no known product")
    if any(chip_id[:8]) and not any(chip_id[hwid_length("Turin") :]):
        return "Turin"
    raise _invalid("a version 2 report does not say its product; name it: Milan or Genoa")


def _invalid(what: str) -> EndorsementError:
    return EndorsementError("ENDORSEMENT_REQUEST_INVALID", what)
