"""Kept evidence under another policy or at another time, without new evidence."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from pagegate.evidence.model import Verdict
from pagegate.evidence.policy import parse_policy
from pagegate.evidence.shadow import ShadowAppraiser
from support.snp import NOW, Case, Source, policy_text


def test_reappraisal_when_the_new_policy_refuses_then_the_session_loses_its_grants(milan: Case) -> None:
    case = milan.under(policy_text())
    evidence = case.evidence
    appraiser = case.appraiser(evidence)
    verdict = appraiser.appraise(evidence, report_data=None, now=NOW)
    strict = appraiser.with_policy(parse_policy(policy_text("vmpl: [3]").encode()))
    again = strict.reappraise(verdict, NOW + timedelta(hours=1))
    assert (again.accepted, again.identity, again.grants) == (False, None, {})
    assert [one.code for one in again.failures] == ["SNP_VMPL"]
    assert again.appraised_at == NOW


def test_reappraisal_when_the_new_policy_accepts_what_the_old_refused_then_accepted(milan: Case) -> None:
    case = milan.under(policy_text("vmpl: [3]"))
    evidence = case.evidence
    refused = case.appraiser(evidence).appraise(evidence, report_data=None, now=NOW)
    again = milan.under(policy_text()).appraiser(evidence).reappraise(refused, NOW)
    assert (refused.accepted, again.accepted, again.identity) == (False, True, "guest")


def test_reappraisal_when_a_certificate_has_expired_since_then_refused(milan: Case) -> None:
    evidence = milan.evidence
    appraiser = milan.appraiser(evidence)
    verdict = appraiser.appraise(evidence, report_data=None, now=NOW)
    assert not appraiser.reappraise(verdict, NOW + timedelta(days=1001)).accepted


def test_reappraisal_when_the_binding_failed_then_it_still_fails(milan: Case) -> None:
    evidence = milan.evidence
    appraiser = milan.appraiser(evidence)
    verdict = appraiser.appraise(evidence, report_data=bytes(64), now=NOW)
    assert [one.code for one in appraiser.reappraise(verdict, NOW).failures] == ["SNP_REPORT_DATA"]


def test_reappraisal_when_the_signature_never_verified_then_stays_refused(milan: Case) -> None:
    evidence = replace(milan.evidence, report=milan.report.to_bytes())
    appraiser = milan.appraiser(evidence)
    verdict = appraiser.appraise(evidence, report_data=None, now=NOW)
    assert not appraiser.reappraise(replace(verdict, accepted=True), NOW).accepted


def test_simulated_evidence_when_no_longer_allowed_then_refused_on_reappraisal(milan: Case) -> None:
    from support.snp import simulated

    case = simulated(milan).but(allow_simulated=True)
    evidence = case.evidence
    verdict = case.appraiser(evidence).appraise(evidence, report_data=None, now=NOW)
    strict = case.but(allow_simulated=False).appraiser(evidence)
    assert [one.code for one in strict.reappraise(verdict, NOW).failures] == ["SIMULATED_EVIDENCE_REFUSED"]


@pytest.mark.parametrize(("trial", "differs"), [("vmpl: [3]", True), ("vmpl: [0]", False)])
def test_shadow_policy_when_it_would_judge_otherwise_then_it_tells_and_changes_nothing(
    milan: Case, trial: str, differs: bool
) -> None:
    told: list[tuple[Verdict, Verdict]] = []
    case = milan.under(policy_text())
    evidence = case.evidence
    trial_policy = parse_policy(policy_text(trial).encode())
    shadow = ShadowAppraiser(case.appraiser(evidence), trial_policy, lambda *both: told.append(both))
    assert shadow.appraise(evidence, report_data=None, now=NOW).accepted
    assert bool(told) is differs


def test_source_when_the_evidence_brings_a_stale_leaf_then_the_right_one_is_fetched(milan: Case) -> None:
    from pagegate.evidence.snp.certificate import OID_SPL
    from support.snp import integer

    right = milan.leaf.der()
    stale = milan.but(leaf=milan.leaf.having(OID_SPL["microcode"], integer(100)), source=Source(leaf=right))
    verdict = stale.verdict()
    assert verdict.accepted
    assert stale.source.asked[0].need_leaf


def test_source_when_the_evidence_is_complete_then_asked_only_for_the_revocation_list(milan: Case) -> None:
    milan.verdict()
    assert [(one.need_leaf, one.need_chain) for one in milan.source.asked] == [(False, False)]


def test_source_when_a_version_2_report_comes_alone_then_each_likely_product_is_asked(milan: Case) -> None:
    alone = milan.lab.case(version=2).but(send_leaf=False)
    alone.verdict()
    assert [one.product for one in alone.source.asked] == ["Milan", "Genoa"]


def test_claims_when_a_revocation_list_was_believed_then_its_age_is_told(milan: Case) -> None:
    claims = milan.but(source=Source(crl=milan.lab.crl(milan.root))).verdict().claims
    assert claims is not None
    assert claims.details["revocation_list"] == {
        "this_update": (NOW - timedelta(days=1)).isoformat(),
        "next_update": (NOW + timedelta(days=30)).isoformat(),
    }


def test_evidence_when_too_large_to_be_cached_then_judged_all_the_same(milan: Case) -> None:
    from pagegate.evidence.snp.table import ATTACHMENT, build_table

    table = build_table({"crl": bytes(100_000)})
    assert milan.but(attachments={ATTACHMENT: table}).verdict().accepted


def test_chain_when_the_source_gives_it_then_the_evidence_need_not(milan: Case) -> None:
    leaf, issuer, root = milan.evidence.certificates
    evidence = replace(milan.evidence, report=milan.report_bytes, certificates=())
    case = milan.but(source=Source(leaf=leaf, chain=(issuer, root)))
    anchored = case.appraiser(replace(evidence, certificates=(leaf, issuer, root)))
    assert anchored.appraise(evidence, report_data=None, now=NOW).accepted


def test_version_2_report_when_the_chain_is_of_no_known_product_then_refused(milan: Case) -> None:
    from pagegate.evidence.snp.certificate import OID_PRODUCT_NAME
    from support.snp import text

    case = milan.lab.case(version=2)
    unknown = case.but(leaf=case.leaf.having(OID_PRODUCT_NAME, text("Rome")), pinned=False)
    assert unknown.fails("SNP_PRODUCT_UNKNOWN", field="productName")
