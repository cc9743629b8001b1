"""What is right is accepted: without this the tests of refusals would prove nothing."""

from __future__ import annotations

import pytest

from pagegate.evidence.model import AccessMode, KeyKind
from pagegate.evidence.snp.product import Product
from support.snp import CSP_ID, NOW, Case, SnpLab, policy_text


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("product", list(Product))
def test_vcek_evidence_when_all_is_right_then_accepted(lab: SnpLab, product: Product, version: int) -> None:
    verdict = lab.case(product, version=version).verdict(report_data=b"D" * 64)
    assert verdict.failures == ()
    assert verdict.accepted
    assert verdict.claims is not None
    assert verdict.claims.details["product"] == product


@pytest.mark.parametrize("product", list(Product))
def test_vlek_evidence_when_its_provider_is_listed_then_accepted(lab: SnpLab, product: Product) -> None:
    verdict = lab.case(product, KeyKind.VLEK).under(policy_text(f"csp_ids: ['{CSP_ID}']")).verdict()
    assert verdict.failures == ()
    assert verdict.accepted


def test_evidence_when_an_identity_matches_then_it_is_named_with_its_grants(milan: Case) -> None:
    verdict = milan.under(policy_text()).verdict()
    assert verdict.identity == "guest"
    assert verdict.grants == {"book": AccessMode.WRITE}


def test_evidence_without_policy_when_accepted_then_nothing_is_granted(milan: Case) -> None:
    verdict = milan.verdict()
    assert (verdict.accepted, verdict.identity, verdict.grants) == (True, None, {})


def test_hwid_when_wrapped_in_an_octet_string_then_accepted(milan: Case) -> None:
    from pagegate.evidence.snp.certificate import OID_HWID

    wrapped = b"\x04\x40" + milan.report.chip_id
    assert milan.but(leaf=milan.leaf.having(OID_HWID, wrapped)).verdict().accepted


def test_launch_tcb_when_above_current_then_accepted_as_after_a_migration(milan: Case) -> None:
    higher = bytes([*milan.report.launch_tcb[:7], 255])
    assert milan.but_report(launch_tcb=higher).verdict().accepted


def test_tcb_when_one_part_is_higher_and_another_lower_then_parts_are_compared_not_integers(milan: Case) -> None:
    # As one integer the current TCB is far above the certificate's; its bootloader is below.
    current = bytes([3, *milan.report.current_tcb[1:7], 255])
    case = milan.but_report(current_tcb=current, committed_tcb=current)
    assert case.fails("SNP_CERT_TCB_ABOVE_CURRENT", field="bootloader")


def test_verdict_when_many_things_are_wrong_then_all_are_listed(milan: Case) -> None:
    case = milan.but_report(policy=0xB001F, vmpl=7, host_data=bytes(32), measurement=bytes(48))
    case = case.under(policy_text(f"host_data: ['{'11' * 32}']"))
    codes = {failure.code for failure in case.verdict(report_data=bytes(64)).failures}
    wanted = {"SNP_GUEST_POLICY", "SNP_VMPL_INVALID", "SNP_HOST_DATA", "SNP_MEASUREMENT", "SNP_REPORT_DATA"}
    assert wanted <= codes


def test_failures_when_no_identity_matches_then_the_nearest_comes_first(milan: Case) -> None:
    policy = (
        "version: 1\nidentities:\n"
        f"  - {{name: far, measurements: ['{'00' * 48}'], host_data: ['{'00' * 32}'], minimum_guest_svn: 9}}\n"
        f"  - {{name: near, measurements: ['{'00' * 48}']}}\n"
    )
    fields = [failure.field for failure in milan.under(policy).verdict().failures]
    assert fields == ["near: measurement", "far: measurement", "far: host_data", "far: guest_svn"]


def test_appraiser_when_reports_share_a_chain_then_dates_are_judged_each_time(milan: Case) -> None:
    evidence = milan.evidence
    appraiser = milan.appraiser(evidence)
    assert appraiser.appraise(evidence, report_data=None, now=NOW).accepted
    late = NOW.replace(year=2036)
    assert not appraiser.appraise(evidence, report_data=None, now=late).accepted
