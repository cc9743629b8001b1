"""A report field by field, for people and as plain data."""

from __future__ import annotations

from collections.abc import Mapping

from pagegate.evidence.policy.model import GUEST_BITS, PLATFORM_BITS
from pagegate.evidence.snp.chain import Chain
from pagegate.evidence.snp.product import Product, product_of_cpuid
from pagegate.evidence.snp.report import Report, SigningKey
from pagegate.evidence.snp.structure import CPUID_VERSION, MITIGATIONS_VERSION
from pagegate.evidence.snp.tcb import Tcb


def describe_report(report: Report, product: Product | None = None, chain: Chain | None = None) -> dict[str, object]:
    """Every field by its own name. Plain JSON values: integers, text, hex, lists and mappings."""
    if product is None and report.version >= CPUID_VERSION:
        product = product_of_cpuid(report.cpuid_family, report.cpuid_model)
    described: dict[str, object] = {
        "version": report.version,
        "product": str(product) if product else None,
        "guest_svn": report.guest_svn,
        "policy": {"value": f"{report.policy:#x}", "abi": "{}.{}".format(*report.abi)}
        | _bits(GUEST_BITS, report.policy),
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "vmpl": report.vmpl,
        "signature_algorithm": report.signature_algorithm,
        "platform_info": {"value": f"{report.platform_info:#x}"} | _bits(PLATFORM_BITS, report.platform_info),
        "signing_key": _signing_key(report.signing_key),
        "mask_chip_key": report.mask_chip_key,
        "author_key_enabled": report.author_key_enabled,
        "report_data": report.report_data.hex(),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "cpuid": None,
        "chip_id": report.chip_id.hex(),
        "current_tcb": _tcb(report.current_tcb, product),
        "reported_tcb": _tcb(report.reported_tcb, product),
        "committed_tcb": _tcb(report.committed_tcb, product),
        "launch_tcb": _tcb(report.launch_tcb, product),
        "current_version": str(report.current_version),
        "committed_version": str(report.committed_version),
        "launch_mit_vector": None,
        "current_mit_vector": None,
        "signature": {"r": f"{report.signature_r:096x}", "s": f"{report.signature_s:096x}"},
    }
    if report.version >= CPUID_VERSION:
        described["cpuid"] = {
            "family": report.cpuid_family,
            "model": report.cpuid_model,
            "stepping": report.cpuid_stepping,
        }
    if report.version >= MITIGATIONS_VERSION:
        described["launch_mit_vector"] = f"{report.launch_mitigations:#x}"
        described["current_mit_vector"] = f"{report.current_mitigations:#x}"
    if chain is not None:
        described["certificate"] = _certificate(chain)
    return described


def _bits(names: Mapping[str, int], value: int) -> dict[str, object]:
    return {name: bool(value & bit) for name, bit in names.items()}


def _signing_key(selector: int) -> str:
    return {key.value: key.name.lower() for key in SigningKey}.get(selector, f"reserved ({selector})")


def _tcb(data: bytes, product: Product | None) -> dict[str, object]:
    """The parts by name when the product, and so the layout, is known."""
    raw: dict[str, object] = {"bytes": data.hex()}
    return raw if product is None else raw | Tcb.from_bytes(product, data).named()


def _certificate(chain: Chain) -> dict[str, object]:
    return {
        "kind": str(chain.kind),
        "product_name": chain.extensions.product_name,
        "hwid": chain.extensions.hwid.hex() if chain.extensions.hwid is not None else None,
        "csp_id": chain.extensions.csp_id,
        "issuer": chain.issuer.subject_name,
        "root": chain.root.subject_name,
        "not_before": chain.leaf.not_before.isoformat(),
        "not_after": chain.leaf.not_after.isoformat(),
    }
