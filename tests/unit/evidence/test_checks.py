"""Each check by itself: evidence that is right in everything but one thing is refused for that thing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from pagegate.evidence.model import Evidence, EvidenceType, KeyKind
from pagegate.evidence.snp.certificate import (
    AMD_ARC,
    OID_BASIC_CONSTRAINTS,
    OID_CSP_ID,
    OID_HWID,
    OID_KEY_USAGE,
    OID_PRODUCT_NAME,
    OID_SPL,
    OID_STRUCT_VERSION,
)
from pagegate.evidence.snp.product import Product
from pagegate.evidence.snp.report import encode_signature
from pagegate.evidence.snp.structure import P384_ORDER
from pagegate.evidence.snp.table import ATTACHMENT, GUIDS
from support.snp import CSP_ID, MEASUREMENT, NOW, Case, SnpLab, Source, integer, policy_text, simulated, text

CA_FALSE = bytes.fromhex("3000")
CA_TRUE = bytes.fromhex("30030101ff")
CA_PATH_0 = bytes.fromhex("30060101ff020100")
CRL_SIGN_ONLY = bytes.fromhex("03020102")


# Parsing


@pytest.mark.proves("SNP_REPORT_SIZE")
@pytest.mark.parametrize("size", [0, 1, 1183, 1185, 4000])
def test_report_when_not_1184_bytes_then_refused(milan: Case, size: int) -> None:
    assert milan.fails("SNP_REPORT_SIZE", raw=milan.report_bytes.ljust(size, b"\0")[:size])


@pytest.mark.proves("SNP_REPORT_VERSION")
@pytest.mark.parametrize("version", [0, 1, 6, 2**32 - 1])
def test_report_when_version_is_unknown_then_refused(milan: Case, version: int) -> None:
    assert milan.but_report(version=version).fails("SNP_REPORT_VERSION")


@pytest.mark.proves("SNP_CERT_MALFORMED")
@pytest.mark.parametrize("junk", [b"", b"\x30\x82\xff", b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----"])
def test_certificate_when_junk_lies_beside_good_ones_then_refused(milan: Case, junk: bytes) -> None:
    assert milan.but(extra=(junk,)).fails("SNP_CERT_MALFORMED")


@pytest.mark.proves("SNP_CERT_MALFORMED")
def test_certificate_when_its_signature_is_not_pss_sha384_then_refused(milan: Case) -> None:
    weak = replace(milan.issuer, hash=SHA256(), pss=padding.PSS(padding.MGF1(SHA256()), 32))
    assert milan.but(issuer=weak).fails("SNP_CERT_MALFORMED")


@pytest.mark.proves("SNP_CERT_MALFORMED")
def test_certificates_when_there_are_too_many_then_refused(milan: Case) -> None:
    assert milan.but(extra=tuple(bytes([one]) for one in range(20))).fails("SNP_CERT_MALFORMED")


@pytest.mark.proves("SNP_TABLE_MALFORMED")
def test_table_when_an_entry_points_past_its_end_then_refused(milan: Case) -> None:
    entry = GUIDS["vcek"].bytes + (48).to_bytes(4, "little") + (9999).to_bytes(4, "little")
    assert milan.but(attachments={ATTACHMENT: entry + bytes(24)}).fails("SNP_TABLE_MALFORMED")


@pytest.mark.proves("SNP_ENDORSEMENT_MISSING")
def test_leaf_when_neither_sent_nor_found_then_refused_and_the_url_is_given(milan: Case) -> None:
    verdict = milan.but(send_leaf=False).verdict()
    failure = next(one for one in verdict.failures if one.code == "SNP_ENDORSEMENT_MISSING")
    chip = milan.report.chip_id.hex()
    url = f"https://kdsintf.amd.com/vcek/v1/Milan/{chip}?blSPL=04&teeSPL=01&snpSPL=24&ucodeSPL=219"
    assert url in failure.hint
    assert verdict.claims is None


@pytest.mark.proves("SNP_ENDORSEMENT_MISSING")
def test_chain_when_the_issuer_is_nowhere_then_refused(milan: Case) -> None:
    case = milan.but(issuer=replace(milan.issuer, subject="SEV-Other"))
    assert case.fails("SNP_ENDORSEMENT_MISSING")


# Report


@pytest.mark.proves("SNP_RESERVED_NOT_ZERO")
@pytest.mark.parametrize(
    "change",
    [
        {"reserved_4c": b"\0\0\0\1"},
        {"reserved_18b": b"\1" + bytes(20)},
        {"reserved_1eb": b"\1"},
        {"reserved_1ef": b"\1"},
        {"reserved_208": bytes(151) + b"\1"},
        {"key_info": 1 << 5},
        {"key_info": 1 << 31},
        {"launch_mitigations": 1},
        {"version": 2},
    ],
    ids=str,
)
def test_reserved_field_when_not_zero_then_refused(milan: Case, change: dict[str, Any]) -> None:
    assert milan.but_report(**change).fails("SNP_RESERVED_NOT_ZERO")


@pytest.mark.proves("SNP_TCB_RESERVED")
@pytest.mark.parametrize("product", list(Product))
@pytest.mark.parametrize("name", ["current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"])
def test_tcb_when_a_reserved_part_is_set_then_refused(lab: SnpLab, product: Product, name: str) -> None:
    case = lab.case(product)
    tcb = bytearray(getattr(case.report, name))
    tcb[4] = 1
    assert case.but_report(**{name: bytes(tcb)}).fails("SNP_TCB_RESERVED", field=name)


@pytest.mark.proves("SNP_POLICY_RESERVED")
@pytest.mark.parametrize("policy", [0x1001F, 0x3001F | 1 << 26, 0x3001F | 1 << 63])
def test_guest_policy_when_a_reserved_bit_is_wrong_then_refused(milan: Case, policy: int) -> None:
    assert milan.but_report(policy=policy).fails("SNP_POLICY_RESERVED")


@pytest.mark.proves("SNP_PLATFORM_RESERVED")
@pytest.mark.parametrize("bit", [8, 31, 63])
def test_platform_info_when_an_unknown_bit_is_set_then_refused(milan: Case, bit: int) -> None:
    assert milan.but_report(platform_info=0x25 | 1 << bit).fails("SNP_PLATFORM_RESERVED")


@pytest.mark.proves("SNP_SIGNING_KEY")
@pytest.mark.parametrize("selector", [2, 3, 4, 5, 6, 7])
def test_signing_key_when_reserved_or_none_then_refused(milan: Case, selector: int) -> None:
    assert milan.but_report(key_info=selector << 2).fails("SNP_SIGNING_KEY")


@pytest.mark.proves("SNP_SIGNING_KEY")
def test_mask_chip_key_when_set_on_a_vcek_report_then_refused(milan: Case) -> None:
    assert milan.but_report(key_info=2).fails("SNP_SIGNING_KEY", field="mask_chip_key")


@pytest.mark.proves("SNP_SIGNATURE_ALGORITHM")
@pytest.mark.parametrize("algorithm", [0, 2, 2**32 - 1])
def test_signature_algorithm_when_not_ecdsa_p384_then_refused(milan: Case, algorithm: int) -> None:
    assert milan.but_report(signature_algorithm=algorithm).fails("SNP_SIGNATURE_ALGORITHM")


@pytest.mark.proves("SNP_SIGNATURE_FORMAT")
@pytest.mark.parametrize("r", [0, P384_ORDER, 2**575])
def test_signature_when_r_is_out_of_range_then_refused(milan: Case, r: int) -> None:
    raw = milan.report_bytes[:0x2A0] + encode_signature(r, 1)
    assert milan.fails("SNP_SIGNATURE_FORMAT", raw=raw)


@pytest.mark.proves("SNP_SIGNATURE_FORMAT")
def test_signature_padding_when_not_zero_then_refused(milan: Case) -> None:
    assert milan.fails("SNP_SIGNATURE_FORMAT", raw=milan.report_bytes[:-1] + b"\1")


@pytest.mark.proves("SNP_VMPL_INVALID")
@pytest.mark.parametrize("vmpl", [4, 2**32 - 1])
def test_vmpl_when_no_guest_can_have_it_then_refused(milan: Case, vmpl: int) -> None:
    assert milan.but_report(vmpl=vmpl).fails("SNP_VMPL_INVALID")


@pytest.mark.proves("SNP_AUTHOR_KEY_INCONSISTENT")
def test_author_key_digest_when_set_without_the_key_enabled_then_refused(milan: Case) -> None:
    assert milan.but_report(author_key_digest=b"A" * 48).fails("SNP_AUTHOR_KEY_INCONSISTENT")


@pytest.mark.proves("SNP_PRODUCT_UNKNOWN")
@pytest.mark.parametrize(("family", "model"), [(0x17, 1), (0x19, 0x20), (0x19, 0xB0), (0x1A, 0x12), (0, 0)])
def test_product_when_family_and_model_are_unknown_then_refused(milan: Case, family: int, model: int) -> None:
    assert milan.but_report(cpuid_family=family, cpuid_model=model).fails("SNP_PRODUCT_UNKNOWN")


@pytest.mark.proves("SNP_CHIP_ID_LENGTH")
def test_chip_id_when_longer_than_8_bytes_on_turin_then_refused(lab: SnpLab) -> None:
    case = lab.case(Product.TURIN)
    assert case.but_report(chip_id=case.report.chip_id[:63] + b"\1").fails("SNP_CHIP_ID_LENGTH")


# Chain


@pytest.mark.proves("SNP_ROOT_UNTRUSTED")
def test_root_when_not_pinned_then_refused(milan: Case) -> None:
    assert milan.but(pinned=False).fails("SNP_ROOT_UNTRUSTED")


@pytest.mark.proves("SNP_CHAIN_SIGNATURE")
@pytest.mark.parametrize(("which", "what"), [("root", "ARK"), ("issuer", "ASK"), ("leaf", "VCEK")])
def test_certificate_when_another_key_signed_it_then_refused(milan: Case, which: str, what: str) -> None:
    forged = replace(getattr(milan, which), signer=milan.lab.asvk)
    assert milan.but(**{which: forged}).fails("SNP_CHAIN_SIGNATURE", field=what)


@pytest.mark.proves("SNP_CHAIN_NAME")
@pytest.mark.parametrize("change", ["ark", "ask", "product"])
def test_name_when_not_amds_for_product_and_kind_then_refused(milan: Case, change: str) -> None:
    if change == "ark":
        case = milan.but(
            root=replace(milan.root, subject="ARK-X", issuer="ARK-X"), issuer=replace(milan.issuer, issuer="ARK-X")
        )
    else:
        name = "SEV-VLEK-Milan" if change == "ask" else "SEV-Genoa"
        case = milan.but(issuer=replace(milan.issuer, subject=name), leaf=replace(milan.leaf, issuer=name))
    assert case.fails("SNP_CHAIN_NAME")


@pytest.mark.proves("SNP_CHAIN_NAME")
def test_name_when_the_root_does_not_name_itself_as_issuer_then_refused(milan: Case) -> None:
    assert milan.but(root=replace(milan.root, issuer="ARK-Genoa")).fails("SNP_CHAIN_NAME", field="ARK issuer")


@pytest.mark.proves("SNP_CHAIN_CONSTRAINTS")
@pytest.mark.parametrize(
    ("which", "oid", "value"),
    [
        ("root", OID_BASIC_CONSTRAINTS, CA_FALSE),
        ("root", OID_BASIC_CONSTRAINTS, CA_PATH_0),
        ("root", OID_KEY_USAGE, CRL_SIGN_ONLY),
        ("issuer", OID_BASIC_CONSTRAINTS, CA_FALSE),
        ("issuer", OID_KEY_USAGE, CRL_SIGN_ONLY),
        ("leaf", OID_BASIC_CONSTRAINTS, CA_TRUE),
    ],
)
def test_constraints_when_wrong_then_refused(milan: Case, which: str, oid: str, value: bytes) -> None:
    changed = getattr(milan, which).having(oid, value, critical=True)
    assert milan.but(**{which: changed}).fails("SNP_CHAIN_CONSTRAINTS")


@pytest.mark.proves("SNP_CHAIN_CONSTRAINTS")
@pytest.mark.parametrize("which", ["root", "issuer", "leaf"])
def test_critical_extension_when_unknown_then_refused(milan: Case, which: str) -> None:
    changed = getattr(milan, which).having("2.5.29.99", b"\x05\x00", critical=True)
    assert milan.but(**{which: changed}).fails("SNP_CHAIN_CONSTRAINTS", field="extensions")


@pytest.mark.proves("SNP_CHAIN_KEY")
def test_issuer_key_when_shorter_than_4096_bits_then_refused(milan: Case) -> None:
    short = rsa.generate_private_key(65537, 2048)
    case = milan.but(issuer=replace(milan.issuer, key=short), leaf=replace(milan.leaf, signer=short))
    assert case.fails("SNP_CHAIN_KEY", field="ASK")


@pytest.mark.proves("SNP_CHAIN_KEY")
def test_leaf_key_when_not_on_p384_then_refused(milan: Case) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    assert milan.but(leaf=replace(milan.leaf, key=other)).fails("SNP_CHAIN_KEY", field="VCEK")


@pytest.mark.proves("SNP_CHAIN_KEY")
def test_issuer_key_when_not_rsa_then_refused(milan: Case) -> None:
    assert milan.but(issuer=replace(milan.issuer, key=milan.lab.chip)).fails("SNP_CHAIN_KEY", field="ASK")


@pytest.mark.proves("SNP_CERT_KIND")
def test_vcek_when_it_has_a_csp_id_then_refused(milan: Case) -> None:
    assert milan.but(leaf=milan.leaf.having(OID_CSP_ID, text("x"))).fails("SNP_CERT_KIND", field="cspID")


@pytest.mark.proves("SNP_CERT_KIND")
def test_vcek_when_it_has_no_hwid_then_refused(milan: Case) -> None:
    assert milan.but(leaf=milan.leaf.without(OID_HWID)).fails("SNP_CERT_KIND", field="hwID")


@pytest.mark.proves("SNP_CERT_KIND")
def test_vlek_when_it_has_a_hwid_then_refused(lab: SnpLab) -> None:
    case = lab.case(kind=KeyKind.VLEK)
    assert case.but(leaf=case.leaf.having(OID_HWID, bytes(64))).fails("SNP_CERT_KIND", field="hwID")


@pytest.mark.proves("SNP_CERT_KIND")
def test_leaf_when_of_the_other_kind_than_the_report_says_then_refused(milan: Case) -> None:
    assert milan.but_report(key_info=1 << 2).fails("SNP_CERT_KIND", field="signing_key")


@pytest.mark.proves("SNP_CERT_EXTENSIONS")
@pytest.mark.parametrize(
    "oid", [OID_STRUCT_VERSION, OID_PRODUCT_NAME, *(OID_SPL[one] for one in ("tee", "spl4", "microcode"))]
)
def test_amd_extension_when_missing_then_refused(milan: Case, oid: str) -> None:
    assert milan.but(leaf=milan.leaf.without(oid)).fails("SNP_CERT_EXTENSIONS")


@pytest.mark.proves("SNP_CERT_EXTENSIONS")
@pytest.mark.parametrize("oid", [AMD_ARC + "3.10", AMD_ARC + "6", OID_SPL["fmc"]])
def test_amd_extension_when_not_of_the_profile_then_refused(milan: Case, oid: str) -> None:
    assert milan.but(leaf=milan.leaf.having(oid, integer(0))).fails("SNP_CERT_EXTENSIONS")


@pytest.mark.proves("SNP_CERT_STRUCT_VERSION")
@pytest.mark.parametrize(("product", "version"), [(Product.MILAN, 1), (Product.TURIN, 0), (Product.GENOA, 2)])
def test_struct_version_when_not_the_products_then_refused(lab: SnpLab, product: Product, version: int) -> None:
    case = lab.case(product)
    assert case.but(leaf=case.leaf.having(OID_STRUCT_VERSION, integer(version))).fails("SNP_CERT_STRUCT_VERSION")


@pytest.mark.proves("SNP_CERT_PRODUCT")
@pytest.mark.parametrize("name", ["Genoa", "Milano", "milan", "Turin-B0"])
def test_product_name_when_not_of_the_root_then_refused(milan: Case, name: str) -> None:
    assert milan.but(leaf=milan.leaf.having(OID_PRODUCT_NAME, text(name))).fails("SNP_CERT_PRODUCT")


# Endorsement


@pytest.mark.proves("SNP_SIGNATURE")
def test_report_when_another_chip_signed_it_then_refused(milan: Case) -> None:
    forger = ec.generate_private_key(ec.SECP384R1())
    forged = milan.but(leaf=replace(milan.leaf, key=forger)).report_bytes
    assert milan.fails("SNP_SIGNATURE", raw=forged)


@pytest.mark.proves("SNP_CERT_TCB")
@pytest.mark.parametrize("part", ["bootloader", "tee", "snp", "microcode", "spl5"])
def test_certificate_when_one_part_of_its_tcb_differs_then_refused(milan: Case, part: str) -> None:
    assert milan.but(leaf=milan.leaf.having(OID_SPL[part], integer(3))).fails("SNP_CERT_TCB", field=part)


@pytest.mark.proves("SNP_CERT_TCB")
def test_certificate_when_only_its_fmc_differs_on_turin_then_refused(lab: SnpLab) -> None:
    case = lab.case(Product.TURIN)
    assert case.but(leaf=case.leaf.having(OID_SPL["fmc"], integer(0))).fails("SNP_CERT_TCB", field="fmc")


def test_signature_when_the_certificate_is_of_another_tcb_then_both_tcbs_and_the_url_are_said(milan: Case) -> None:
    other = milan.but(leaf=milan.leaf.having(OID_SPL["microcode"], integer(115)))
    forger = ec.generate_private_key(ec.SECP384R1())
    raw = milan.but(leaf=replace(milan.leaf, key=forger)).report_bytes
    failure = next(one for one in other.verdict(raw=raw).failures if one.code == "SNP_SIGNATURE")
    assert "microcode=219" in failure.expected
    assert "microcode=115" in failure.found
    assert "ucodeSPL=219" in failure.hint


@pytest.mark.proves("SNP_CERT_TCB_ABOVE_CURRENT")
def test_certificate_when_above_the_running_firmware_then_refused(milan: Case) -> None:
    lower = bytes([*milan.report.current_tcb[:7], 218])
    case = milan.but_report(current_tcb=lower, committed_tcb=lower)
    assert case.fails("SNP_CERT_TCB_ABOVE_CURRENT", field="microcode")


@pytest.mark.proves("SNP_CERT_HWID")
@pytest.mark.parametrize("product", list(Product))
def test_certificate_when_of_another_chip_then_refused(lab: SnpLab, product: Product) -> None:
    case = lab.case(product)
    other = bytes(product.hwid_bytes - 1) + b"\1"
    assert case.but(leaf=case.leaf.having(OID_HWID, other)).fails("SNP_CERT_HWID")


@pytest.mark.proves("SNP_CERT_HWID")
@pytest.mark.parametrize(("product", "size"), [(Product.MILAN, 8), (Product.TURIN, 64)])
def test_hwid_when_of_another_products_length_then_refused(lab: SnpLab, product: Product, size: int) -> None:
    case = lab.case(product)
    assert case.but(leaf=case.leaf.having(OID_HWID, case.report.chip_id[:size])).fails("SNP_CERT_HWID")


@pytest.mark.proves("SNP_CERT_PRODUCT_OF_REPORT")
def test_chain_when_of_another_product_than_the_report_then_refused(milan: Case) -> None:
    assert milan.but_report(cpuid_model=0x11).fails("SNP_CERT_PRODUCT_OF_REPORT")


# Binding


@pytest.mark.proves("SNP_REPORT_DATA")
def test_report_data_when_of_another_handshake_then_refused_as_replayed_or_relayed(milan: Case) -> None:
    verdict = milan.verdict(report_data=b"E" * 64)
    failure = next(one for one in verdict.failures if one.code == "SNP_REPORT_DATA")
    assert not verdict.accepted
    assert "replayed" in failure.hint


# Trust now


@pytest.mark.proves("SIMULATED_EVIDENCE_REFUSED")
def test_simulated_evidence_when_not_allowed_then_refused_and_marked(milan: Case) -> None:
    verdict = simulated(milan).verdict()
    assert [failure.code for failure in verdict.failures] == ["SIMULATED_EVIDENCE_REFUSED"]
    assert verdict.simulated


def test_simulated_evidence_when_allowed_then_accepted_and_marked(milan: Case) -> None:
    verdict = simulated(milan).but(allow_simulated=True).verdict()
    assert (verdict.accepted, verdict.simulated) == (True, True)


@pytest.mark.proves("SNP_CHAIN_NAME")
def test_simulated_root_when_it_bears_amds_names_then_refused(milan: Case) -> None:
    assert milan.but(simulated=True, allow_simulated=True).fails("SNP_CHAIN_NAME")


@pytest.mark.proves("SNP_CERT_EXPIRED")
@pytest.mark.parametrize(("which", "what"), [("root", "ARK"), ("issuer", "ASK"), ("leaf", "VCEK")])
def test_certificate_when_it_ended_longer_ago_than_the_skew_then_refused(milan: Case, which: str, what: str) -> None:
    ended = replace(getattr(milan, which), not_after=NOW - timedelta(minutes=6))
    assert milan.but(**{which: ended}).fails("SNP_CERT_EXPIRED", field=what)


@pytest.mark.parametrize("which", ["not_before", "not_after"])
def test_certificate_when_off_by_less_than_the_skew_then_accepted(milan: Case, which: str) -> None:
    off = timedelta(minutes=4) if which == "not_before" else timedelta(minutes=-4)
    assert milan.but(leaf=replace(milan.leaf, **{which: NOW + off})).verdict().accepted


@pytest.mark.proves("SNP_CERT_NOT_YET_VALID")
@pytest.mark.parametrize(("which", "what"), [("root", "ARK"), ("issuer", "ASK"), ("leaf", "VCEK")])
def test_certificate_when_it_begins_later_than_the_skew_then_refused_saying_by_how_much(
    milan: Case, which: str, what: str
) -> None:
    early = replace(getattr(milan, which), not_before=NOW + timedelta(hours=3))
    failures = milan.but(**{which: early}).verdict().failures
    assert [(one.code, one.field) for one in failures] == [("SNP_CERT_NOT_YET_VALID", f"{what} validity")]
    assert "begins 3:00:00 after" in failures[0].found


@pytest.mark.proves("SNP_CERT_REVOKED")
@pytest.mark.parametrize("serial", [0x10001, 7])
@pytest.mark.parametrize("mode", ["hard", "soft", "off"])
def test_issuer_or_leaf_when_revoked_then_refused_in_every_mode(milan: Case, serial: int, mode: str) -> None:
    crl = milan.lab.crl(milan.root, [serial])
    table = crl_table(crl) if mode == "off" else {}
    case = milan.but(source=Source(crl=crl), attachments=table)
    assert case.under(policy_text(top=f"revocation: {{mode: {mode}}}")).fails("SNP_CERT_REVOKED")


@pytest.mark.proves("SNP_CERT_REVOKED")
def test_revocation_when_an_attester_brings_an_older_list_then_the_newer_counts(milan: Case) -> None:
    old = milan.lab.crl(milan.root, [], made=NOW - timedelta(days=20))
    new = milan.lab.crl(milan.root, [0x10001])
    assert milan.but(source=Source(crl=new), attachments=crl_table(old)).fails("SNP_CERT_REVOKED")


def crl_table(crl: bytes) -> dict[str, bytes]:
    """A certificate table with only a revocation list."""
    from pagegate.evidence.snp.table import build_table

    return {ATTACHMENT: build_table({"crl": crl})}


HARD = policy_text(top="revocation: {mode: hard, max_age: 10d}")
SOFT = policy_text(top="revocation: {mode: soft, max_age: 10d}")
OFF = policy_text(top="revocation: {mode: off}")


@pytest.mark.proves("SNP_CRL_MISSING")
def test_revocation_list_when_missing_under_hard_then_refused(milan: Case) -> None:
    assert milan.under(HARD).fails("SNP_CRL_MISSING")


@pytest.mark.proves("SNP_CRL_MISSING")
def test_revocation_list_when_not_signed_by_the_root_then_not_believed(milan: Case) -> None:
    forged = milan.lab.crl(milan.root, [], signer=milan.lab.ask)
    assert milan.but(source=Source(crl=forged)).under(HARD).fails("SNP_CRL_MISSING")


@pytest.mark.proves("SNP_CRL_MISSING")
def test_revocation_list_when_it_cannot_be_parsed_then_not_believed(milan: Case) -> None:
    assert milan.but(source=Source(crl=b"\x30\x00")).under(HARD).fails("SNP_CRL_MISSING")


def test_revocation_list_when_missing_under_soft_then_accepted_with_a_warning(milan: Case) -> None:
    verdict = milan.under(SOFT).verdict()
    assert verdict.accepted
    assert [one.code for one in verdict.warnings] == ["SNP_CRL_MISSING"]


def test_revocation_list_when_off_then_not_asked_for(milan: Case) -> None:
    verdict = milan.under(OFF).verdict()
    assert (verdict.accepted, verdict.warnings, milan.source.asked) == (True, (), [])


def test_revocation_list_when_fresh_under_hard_then_accepted(milan: Case) -> None:
    assert milan.but(source=Source(crl=milan.lab.crl(milan.root))).under(HARD).verdict().accepted


@pytest.mark.proves("SNP_CRL_STALE")
@pytest.mark.parametrize(
    ("made", "until"),
    [
        (NOW - timedelta(days=5), NOW - timedelta(minutes=6)),
        (NOW + timedelta(minutes=6), NOW + timedelta(days=1)),
        (NOW - timedelta(days=11), NOW + timedelta(days=30)),
    ],
    ids=["nextUpdate passed", "thisUpdate ahead", "older than max_age"],
)
def test_revocation_list_when_not_fresh_under_hard_then_refused(milan: Case, made: Any, until: Any) -> None:
    crl = milan.lab.crl(milan.root, made=made, until=until)
    assert milan.but(source=Source(crl=crl)).under(HARD).fails("SNP_CRL_STALE")


# Policy


@pytest.mark.proves("SNP_PRODUCT_REFUSED")
def test_product_when_not_accepted_then_refused(milan: Case) -> None:
    assert milan.under(policy_text(top="products: [Genoa, Turin]")).fails("SNP_PRODUCT_REFUSED")


@pytest.mark.proves("SNP_REPORT_VERSION_REFUSED")
def test_report_version_when_below_the_least_then_refused(milan: Case) -> None:
    assert milan.under(policy_text(top="minimum_report_version: 4")).fails("SNP_REPORT_VERSION_REFUSED")


@pytest.mark.proves("EVIDENCE_TYPE_REFUSED")
def test_evidence_type_when_the_policy_wants_another_then_refused(milan: Case) -> None:
    assert milan.under(policy_text(top="evidence_types: [tdx]")).fails("EVIDENCE_TYPE_REFUSED")


@pytest.mark.proves("EVIDENCE_TYPE_REFUSED")
def test_evidence_when_not_of_sev_snp_then_refused(milan: Case) -> None:
    evidence = Evidence(EvidenceType.TDX, b"quote")
    verdict = milan.appraiser(milan.evidence).appraise(evidence, report_data=None, now=NOW)
    assert [one.code for one in verdict.failures] == ["EVIDENCE_TYPE_REFUSED"]


def refused_by(case: Case, rules: str, code: str, field: str) -> bool:
    """True when the rules refuse the case with the identity's name in the field."""
    return case.under(policy_text(rules)).fails(code, field=f"guest: {field}")


@pytest.mark.proves("SNP_MEASUREMENT")
def test_measurement_when_not_listed_then_refused(milan: Case) -> None:
    assert refused_by(milan.but_report(measurement=bytes(48)), "", "SNP_MEASUREMENT", "measurement")


@pytest.mark.proves("SNP_HOST_DATA")
def test_host_data_when_not_listed_then_refused(milan: Case) -> None:
    assert refused_by(milan, f"host_data: ['{'11' * 32}']", "SNP_HOST_DATA", "host_data")


@pytest.mark.proves("SNP_ID_KEY")
def test_id_key_when_not_listed_then_refused(milan: Case) -> None:
    assert refused_by(milan, f"id_key_digests: ['{'11' * 48}']", "SNP_ID_KEY", "id_key_digest")


@pytest.mark.proves("SNP_AUTHOR_KEY")
def test_author_key_when_not_listed_then_refused(milan: Case) -> None:
    case = milan.but_report(key_info=1, author_key_digest=b"A" * 48)
    assert refused_by(case, f"author_key_digests: ['{'11' * 48}']", "SNP_AUTHOR_KEY", "author_key_digest")


@pytest.mark.proves("SNP_AUTHOR_KEY")
def test_author_key_when_listed_but_not_enabled_then_refused(milan: Case) -> None:
    assert refused_by(milan, f"author_key_digests: ['{'00' * 48}']", "SNP_AUTHOR_KEY", "author_key_en")


@pytest.mark.proves("SNP_FAMILY_ID")
def test_family_id_when_not_listed_then_refused(milan: Case) -> None:
    assert refused_by(milan, f"family_ids: ['{'11' * 16}']", "SNP_FAMILY_ID", "family_id")


@pytest.mark.proves("SNP_IMAGE_ID")
def test_image_id_when_not_listed_then_refused(milan: Case) -> None:
    assert refused_by(milan, f"image_ids: ['{'11' * 16}']", "SNP_IMAGE_ID", "image_id")


@pytest.mark.proves("SNP_REPORT_ID")
def test_report_id_when_not_listed_then_refused(milan: Case) -> None:
    assert refused_by(milan, f"report_ids: ['{'11' * 32}']", "SNP_REPORT_ID", "report_id")


@pytest.mark.proves("SNP_GUEST_SVN")
def test_guest_svn_when_below_the_least_then_refused(milan: Case) -> None:
    assert refused_by(milan, "minimum_guest_svn: 3", "SNP_GUEST_SVN", "guest_svn")


@pytest.mark.proves("SNP_GUEST_POLICY")
@pytest.mark.parametrize(("bit", "name"), [(19, "debug"), (18, "migration-agent")])
def test_guest_policy_when_debug_or_migration_is_allowed_then_refused_without_any_policy(
    milan: Case, bit: int, name: str
) -> None:
    assert milan.but_report(policy=0x3001F | 1 << bit).fails("SNP_GUEST_POLICY", field=name)


@pytest.mark.proves("SNP_GUEST_POLICY")
@pytest.mark.parametrize(("rule", "field"), [("require: [single-socket]", "single-socket"), ("forbid: [smt]", "smt")])
def test_guest_policy_when_a_bit_is_not_as_asked_then_refused(milan: Case, rule: str, field: str) -> None:
    assert refused_by(milan, f"guest_policy: {{{rule}}}", "SNP_GUEST_POLICY", f"policy {field}")


@pytest.mark.proves("SNP_GUEST_ABI")
def test_guest_abi_when_below_the_least_then_refused(milan: Case) -> None:
    assert refused_by(milan, "guest_policy: {minimum_abi: '1.51'}", "SNP_GUEST_ABI", "policy ABI")


@pytest.mark.proves("SNP_PLATFORM_INFO")
@pytest.mark.parametrize(("rule", "field"), [("require: [tsme]", "tsme"), ("forbid: [smt]", "smt")])
def test_platform_info_when_a_bit_is_not_as_asked_then_refused(milan: Case, rule: str, field: str) -> None:
    assert refused_by(milan, f"platform: {{{rule}}}", "SNP_PLATFORM_INFO", f"platform_info {field}")


@pytest.mark.proves("SNP_VMPL")
def test_vmpl_when_not_listed_then_refused(milan: Case) -> None:
    assert refused_by(milan.but_report(vmpl=1), "vmpl: [0]", "SNP_VMPL", "vmpl")


@pytest.mark.proves("SNP_TCB_BELOW_FLOOR")
@pytest.mark.parametrize("which", ["reported", "committed", "launch"])
@pytest.mark.parametrize("part", ["bootloader", "tee", "snp", "microcode"])
def test_tcb_when_one_part_is_below_its_floor_then_refused(milan: Case, which: str, part: str) -> None:
    rule = f"tcb: {{Milan: {{{which}: {{{part}: 255}}}}}}"
    assert refused_by(milan, rule, "SNP_TCB_BELOW_FLOOR", f"{which}_tcb {part}")


@pytest.mark.proves("SNP_TCB_FLOOR_MISSING")
def test_tcb_when_the_product_has_no_floor_beside_others_then_refused(milan: Case) -> None:
    assert refused_by(milan, "tcb: {Genoa: {reported: {snp: 1}}}", "SNP_TCB_FLOOR_MISSING", "tcb")


@pytest.mark.proves("SNP_FIRMWARE_VERSION")
@pytest.mark.parametrize("field", ["current_version", "committed_version"])
@pytest.mark.parametrize("least", ["1.55.30", "1.56", "2.0"])
def test_firmware_when_older_than_the_least_then_refused(milan: Case, field: str, least: str) -> None:
    assert refused_by(milan, f"minimum_firmware: '{least}'", "SNP_FIRMWARE_VERSION", field)


@pytest.mark.proves("SNP_FIRMWARE_PROVISIONAL")
def test_firmware_when_the_host_can_roll_it_back_then_refused_without_any_policy(milan: Case) -> None:
    assert milan.but_report(committed_build=28).fails("SNP_FIRMWARE_PROVISIONAL", field="committed_version")


@pytest.mark.proves("SNP_FIRMWARE_PROVISIONAL")
def test_committed_tcb_when_below_current_then_refused_without_any_policy(milan: Case) -> None:
    lower = bytes([*milan.report.committed_tcb[:7], 1])
    assert milan.but_report(committed_tcb=lower).fails("SNP_FIRMWARE_PROVISIONAL", field="committed_tcb microcode")


@pytest.mark.proves("SNP_FIRMWARE_PROVISIONAL")
def test_committed_firmware_when_above_current_then_refused_even_where_provisional_is_allowed(milan: Case) -> None:
    rule = "provisional_firmware: true"
    code = "SNP_FIRMWARE_PROVISIONAL"
    assert refused_by(milan.but_report(committed_build=30), rule, code, "committed_version")


def test_provisional_firmware_when_allowed_then_accepted(milan: Case) -> None:
    lower = bytes([*milan.report.committed_tcb[:7], 1])
    case = milan.but_report(committed_tcb=lower, committed_build=28)
    assert case.under(policy_text("provisional_firmware: true")).verdict().accepted


@pytest.mark.proves("SNP_MITIGATIONS")
@pytest.mark.parametrize("name", ["launch", "current"])
def test_mitigations_when_one_is_missing_then_refused(lab: SnpLab, name: str) -> None:
    case = lab.case(version=5)
    assert refused_by(case, f"mitigations: {{{name}: 0x10}}", "SNP_MITIGATIONS", f"{name}_mit_vector")


@pytest.mark.proves("SNP_MITIGATIONS")
def test_mitigations_when_the_report_is_too_old_to_have_them_then_refused(milan: Case) -> None:
    assert refused_by(milan, "mitigations: {}", "SNP_MITIGATIONS", "mitigation vectors")


def test_mitigations_when_there_are_more_than_asked_for_then_accepted(lab: SnpLab) -> None:
    case = lab.case(version=5).under(policy_text("mitigations: {launch: 0x3, current: 0x3}"))
    assert case.verdict().accepted


@pytest.mark.proves("SNP_SIGNING_KEY_REFUSED")
def test_signing_key_when_its_kind_is_not_accepted_then_refused(milan: Case) -> None:
    assert refused_by(milan, "signing_keys: [vlek]", "SNP_SIGNING_KEY_REFUSED", "signing_key")


@pytest.mark.proves("SNP_CSP_ID")
@pytest.mark.parametrize("rule", ["", "csp_ids: ['CN=other.test']", f"csp_ids: ['{CSP_ID}.evil']"])
def test_provider_when_not_listed_then_refused(lab: SnpLab, rule: str) -> None:
    assert refused_by(lab.case(kind=KeyKind.VLEK), rule, "SNP_CSP_ID", "VLEK cspID")


@pytest.mark.proves("SNP_CHIP_ID")
@pytest.mark.parametrize("product", list(Product))
def test_chip_when_not_listed_then_refused(lab: SnpLab, product: Product) -> None:
    rule = f"chip_ids: ['{'11' * product.hwid_bytes}']"
    assert refused_by(lab.case(product), rule, "SNP_CHIP_ID", "chip_id")


@pytest.mark.proves("SNP_CHIP_ID")
def test_chip_when_denied_then_refused(milan: Case) -> None:
    assert refused_by(milan, f"denied_chip_ids: ['{milan.report.chip_id.hex()}']", "SNP_CHIP_ID", "chip_id")


@pytest.mark.proves("SNP_CHIP_ID")
@pytest.mark.parametrize("key", ["chip_ids", "denied_chip_ids"])
def test_chip_when_a_vlek_does_not_say_which_then_refused_by_either_list(lab: SnpLab, key: str) -> None:
    rule = f"{key}: ['{'11' * 64}']\ncsp_ids: ['{CSP_ID}']"
    assert refused_by(lab.case(kind=KeyKind.VLEK), rule, "SNP_CHIP_ID", "chip_id")


def test_chip_when_listed_in_the_reports_or_the_certificates_form_then_accepted(lab: SnpLab) -> None:
    case = lab.case(Product.TURIN)
    for form in (case.report.chip_id, case.report.chip_id[:8]):
        assert case.under(policy_text(f"chip_ids: ['{form.hex()}']")).verdict().accepted


@pytest.mark.proves("SNP_CHIP_ID_MASKED")
def test_chip_id_when_masked_then_refused_without_any_policy(milan: Case) -> None:
    assert milan.but_report(chip_id=bytes(64)).fails("SNP_CHIP_ID_MASKED")


def test_chip_id_when_masked_and_allowed_then_the_certificate_names_the_chip(milan: Case) -> None:
    case = milan.but_report(chip_id=bytes(64)).under(
        policy_text(f"masked_chip_id: true\nchip_ids: ['{milan.report.chip_id.hex()}']")
    )
    verdict = case.verdict()
    assert verdict.accepted
    assert verdict.claims is not None
    assert verdict.claims.platform_id == milan.report.chip_id.hex()


def test_policy_when_the_measurement_is_listed_then_other_things_are_accepted(milan: Case) -> None:
    assert milan.report.measurement == MEASUREMENT
    assert milan.under(policy_text()).verdict().accepted


# Session


@pytest.mark.proves("EVIDENCE_TOO_OLD")
def test_session_when_its_evidence_is_older_than_allowed_then_refused(milan: Case) -> None:
    case = milan.under(policy_text(top="max_evidence_age: 1h"))
    evidence = case.evidence
    appraiser = case.appraiser(evidence)
    verdict = appraiser.appraise(evidence, report_data=None, now=NOW)
    assert appraiser.reappraise(verdict, NOW + timedelta(minutes=59)).accepted
    later = appraiser.reappraise(verdict, NOW + timedelta(minutes=61))
    assert [one.code for one in later.failures] == ["EVIDENCE_TOO_OLD"]
