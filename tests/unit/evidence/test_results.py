"""Verdicts for people, for programs, and signed for relying parties."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from pagegate.errors import EvidenceError
from pagegate.evidence.ear import PROFILE, sign_result, trust_vector, verify_result
from pagegate.evidence.verdict import render_verdict, verdict_to_dict
from support.snp import NOW, Case, policy_text, simulated

KEY = ec.generate_private_key(ec.SECP384R1())
HOUR = timedelta(hours=1)


def test_verdict_when_made_plain_then_json_takes_it(milan: Case) -> None:
    plain = json.loads(json.dumps(verdict_to_dict(milan.under(policy_text()).verdict())))
    assert (plain["accepted"], plain["identity"], plain["grants"]) == (True, "guest", {"book": "write"})
    assert plain["claims"]["measurement"] == milan.report.measurement.hex()
    assert plain["claims"]["details"]["certificate"]["root"] == "ARK-Milan"


def test_verdict_when_rejected_then_the_text_lists_each_failure_with_its_source(milan: Case) -> None:
    text = render_verdict(milan.but_report(vmpl=9).verdict(report_data=bytes(64)))
    assert text.startswith("REJECTED: 3 checks failed")
    for part in ("SNP_VMPL_INVALID", "SNP_REPORT_DATA", "expected", "found", "source    56860"):
        assert part in text


def test_verdict_when_simulated_then_the_text_says_so(milan: Case) -> None:
    assert "SIMULATED" in render_verdict(simulated(milan).but(allow_simulated=True).verdict())


def test_verdict_when_unparsed_then_the_text_claims_nothing(milan: Case) -> None:
    assert "No claim of this evidence is verified." in render_verdict(milan.verdict(raw=b""))


def test_verdict_when_accepted_then_the_text_names_identity_and_grants(milan: Case) -> None:
    assert "guest; may: book write" in render_verdict(milan.under(policy_text()).verdict())


def test_ear_when_accepted_then_affirming_and_verifiable(milan: Case) -> None:
    verdict = milan.under(policy_text()).verdict()
    claims = verify_result(sign_result(verdict, KEY, now=NOW, lifetime=HOUR, nonce="n" * 8), KEY.public_key(), now=NOW)
    result = claims["submods"]["sev-snp"]
    assert (claims["eat_profile"], claims["eat_nonce"]) == (PROFILE, "n" * 8)
    assert result["ear_status"] == "affirming"
    assert result["ear_appraisal_policy_ids"] == [f"sha256:{verdict.policy_digest}"]
    assert max(result["ear_trustworthiness_vector"].values()) < 32


@pytest.mark.parametrize(
    ("change", "claim", "value"),
    [
        ({"measurement": bytes(48)}, "executables", 33),
        ({"policy": 0xB001F}, "runtime_opaque", 96),
        ({"chip_id": bytes(64)}, "instance_identity", 97),
        ({"committed_build": 1}, "hardware", 96),
    ],
)
def test_ear_when_refused_then_contraindicated_and_the_vector_says_for_what(
    milan: Case, change: dict[str, object], claim: str, value: int
) -> None:
    verdict = milan.but_report(**change).under(policy_text()).verdict()
    token = sign_result(verdict, KEY, now=NOW, lifetime=HOUR)
    result = verify_result(token, KEY.public_key(), now=NOW)["submods"]["sev-snp"]
    assert result["ear_status"] == "contraindicated"
    assert result["ear_trustworthiness_vector"][claim] == value


def test_ear_when_simulated_then_contraindicated_though_accepted(milan: Case) -> None:
    verdict = simulated(milan).but(allow_simulated=True).verdict()
    token = sign_result(verdict, KEY, now=NOW, lifetime=HOUR)
    assert verdict.accepted
    assert verify_result(token, KEY.public_key(), now=NOW)["submods"]["sev-snp"]["ear_status"] == "contraindicated"


def test_ear_when_the_signature_does_not_verify_then_the_vector_says_so(milan: Case) -> None:
    assert trust_vector(milan.verdict(raw=milan.report.to_bytes())) == {"hardware": 99}


def token_of(case: Case) -> str:
    return sign_result(case.verdict(), KEY, now=NOW, lifetime=HOUR)


def changed_body(token: str) -> str:
    head, body, tail = token.split(".")
    claims = json.loads(urlsafe_b64decode(body + "=="))
    claims["submods"]["sev-snp"]["ear_status"] = "affirming!"
    return f"{head}.{urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.{tail}"


@pytest.mark.parametrize("later", [timedelta(hours=1), timedelta(seconds=-1)])
def test_ear_when_not_valid_at_the_time_then_refused(milan: Case, later: timedelta) -> None:
    with pytest.raises(EvidenceError, match="EAR_INVALID"):
        verify_result(token_of(milan), KEY.public_key(), now=NOW + later)


def test_ear_when_changed_or_malformed_then_refused(milan: Case) -> None:
    token = token_of(milan)
    none = urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    for bad in (changed_body(token), "", "a.b", "a.b.c", token[:-4], none + token[token.index(".") :], "x" * 70_000):
        with pytest.raises(EvidenceError, match="EAR_INVALID"):
            verify_result(bad, KEY.public_key(), now=NOW)


def test_ear_when_signed_by_another_key_then_refused(milan: Case) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(EvidenceError, match="does not verify with this key"):
        verify_result(token_of(milan), other.public_key(), now=NOW)


def test_ear_when_the_key_is_not_on_p384_then_refused(milan: Case) -> None:
    with pytest.raises(EvidenceError, match="EAR_KEY_UNSUITABLE"):
        sign_result(milan.verdict(), ec.generate_private_key(ec.SECP256R1()), now=NOW, lifetime=HOUR)


def test_verdict_when_without_time_then_plain_data_has_none(milan: Case) -> None:
    assert verdict_to_dict(replace(milan.verdict(), appraised_at=None))["appraised_at"] is None
