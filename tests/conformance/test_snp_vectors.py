"""Every real report gives exactly its expected.json; no bit of what is signed can change unseen."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache

import pytest
from click.testing import CliRunner

from pagegate.cli import cli
from pagegate.errors import EndorsementError
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.model import EndorsementRequest, Endorsements, Evidence, EvidenceType, Verdict
from pagegate.evidence.policy import parse_policy
from pagegate.evidence.snp.anchors import amd_anchors, amd_certificates
from pagegate.evidence.snp.certificate import parse_amd_extensions, parse_certificate, split_certificates
from pagegate.evidence.snp.report import SIGNED_BYTES, parse_report
from pagegate.evidence.snp.table import ATTACHMENT
from pagegate.evidence.snp.tcb import Tcb
from vectors import SnpVector, folder, needs_vectors, snp_vectors

pytestmark = needs_vectors

SNP = folder() / "sev-snp"
GENUINE = snp_vectors(genuine=True)
UNVERIFIED = snp_vectors(genuine=False)
ACCEPT_ANY = parse_policy(
    b"version: 1\n"
    b"identities:\n"
    b"  - name: any\n"
    b"    accept_any_measurement: true\n"
    b"    provisional_firmware: true\n"
    b"    guest_policy: {forbid: []}\n"
    b"    csp_ids: [CN=cc-us-east-2.amazonaws.com]\n"
)
"""Authenticity is the question here, so the policy asks for nothing else."""


def named(vector: SnpVector) -> str:
    return vector.name


class Nothing:
    """No endorsements but those in the evidence."""

    def find(self, request: EndorsementRequest) -> Endorsements:
        raise EndorsementError("ENDORSEMENT_OFFLINE", "offline")


@cache
def appraiser() -> EvidenceAppraiser:
    return EvidenceAppraiser(ACCEPT_ANY, anchors=amd_anchors(), endorsements=Nothing())


def when(vector: SnpVector) -> datetime:
    """A time at which the leaf was valid: many VLEKs live a year."""
    begin = vector.expected.get("cert", {}).get("not_before")
    return datetime.fromisoformat(begin).replace(hour=23) if begin else datetime.now(UTC)


def judge(vector: SnpVector, *, report: bytes | None = None, certificates: tuple[bytes, ...] | None = None) -> Verdict:
    evidence = Evidence(
        EvidenceType.SEV_SNP,
        vector.report if report is None else report,
        vector.certificates if certificates is None else certificates,
    )
    return appraiser().appraise(evidence, report_data=None, now=when(vector))


def test_vectors_when_looked_for_then_all_are_there() -> None:
    assert (len(GENUINE), len(UNVERIFIED)) == (19, 4)


@pytest.mark.parametrize("vector", GENUINE, ids=named)
def test_report_when_expected_to_verify_then_accepted(vector: SnpVector) -> None:
    verdict = judge(vector)
    assert verdict.failures == ()
    assert (verdict.accepted, verdict.simulated) == (True, False)


@pytest.mark.parametrize("vector", GENUINE, ids=named)
def test_report_when_sent_with_its_own_chain_then_accepted(vector: SnpVector) -> None:
    chain = (vector.path / "chain.pem").read_bytes()
    assert judge(vector, certificates=(chain, *vector.certificates)).accepted


@pytest.mark.parametrize("vector", UNVERIFIED, ids=named)
def test_report_when_no_certificate_is_known_then_refused_for_that_alone(vector: SnpVector) -> None:
    verdict = judge(vector)
    # Version 2 reports: product and provider are known only from the certificate.
    said_by_certificate = {"SNP_PRODUCT_REFUSED", "SNP_CSP_ID"}
    assert {one.code for one in verdict.failures} - said_by_certificate == {"SNP_ENDORSEMENT_MISSING"}
    assert not verdict.accepted
    assert verdict.claims is None


@pytest.mark.parametrize("vector", snp_vectors(), ids=named)
def test_fields_when_parsed_then_they_are_those_expected(vector: SnpVector) -> None:
    report, expected = parse_report(vector.report), vector.expected
    found = {
        "report_version": report.version,
        "guest_svn": report.guest_svn,
        "policy": report.policy,
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "vmpl": report.vmpl,
        "signature_algo": report.signature_algorithm,
        "current_tcb": report.current_tcb.hex(),
        "platform_info": report.platform_info,
        "flags": report.key_info,
        "signing_key": ("vcek", "vlek")[report.signing_key],
        "mask_chip_key": report.mask_chip_key,
        "author_key_en": report.author_key_enabled,
        "report_data": report.report_data.hex(),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "reported_tcb": report.reported_tcb.hex(),
        "chip_id": report.chip_id.hex(),
        "committed_tcb": report.committed_tcb.hex(),
        "current_version": str(report.current_version),
        "committed_version": str(report.committed_version),
        "launch_tcb": report.launch_tcb.hex(),
    }
    if expected["cpuid_family_model_stepping"] is not None:
        found["cpuid_family_model_stepping"] = [report.cpuid_family, report.cpuid_model, report.cpuid_stepping]
    if report.version >= 5:
        found["launch_mit_vector"] = report.launch_mitigations.to_bytes(8, "little").hex()
        found["current_mit_vector"] = report.current_mitigations.to_bytes(8, "little").hex()
    assert found == {name: expected[name] for name in found}


@pytest.mark.parametrize("vector", GENUINE, ids=named)
def test_verdict_when_accepted_then_product_and_tcb_are_those_expected(vector: SnpVector) -> None:
    claims = judge(vector).claims
    assert claims is not None
    assert claims.details["product"] == vector.expected["product"]
    reported = claims.details["reported_tcb"]
    assert isinstance(reported, dict)
    wanted = vector.expected["reported_tcb_decoded"]
    long_names = {"bl": "bootloader", "ucode": "microcode"}
    assert {name: level for name, level in reported.items() if name != "bytes"} == {
        long_names.get(name, name): level for name, level in wanted.items()
    }


@pytest.mark.parametrize("vector", GENUINE, ids=named)
def test_certificate_when_parsed_then_it_is_as_expected(vector: SnpVector) -> None:
    expected = vector.expected["cert"]
    certificate = parse_certificate(vector.certificates[0])
    extensions = parse_amd_extensions(certificate)
    assert certificate.issuer_name == expected["issuer_cn"]
    assert certificate.serial == expected["serial"]
    assert str(certificate.not_before) == expected["not_before"]
    assert str(certificate.not_after) == expected["not_after"]
    short = {"bootloader": "bl_spl", "microcode": "ucode_spl"}
    levels = {
        short.get(name, name if name.startswith("spl") else f"{name}_spl"): level
        for name, level in extensions.spl.items()
    }
    identity = {"hwid": extensions.hwid.hex()} if extensions.hwid is not None else {"csp_id": extensions.csp_id}
    found = {"struct_version": extensions.struct_version, "product_name": extensions.product_name, **levels, **identity}
    assert found == expected["extensions"]
    assert Tcb.from_bytes(judge(vector).claims.facts.product, parse_report(vector.report).reported_tcb).parts == dict(  # type: ignore[union-attr, attr-defined]
        extensions.spl
    )


@pytest.mark.parametrize("vector", GENUINE, ids=named)
def test_report_when_one_bit_of_any_signed_byte_is_flipped_then_refused(vector: SnpVector) -> None:
    original = vector.report
    for index in range(SIGNED_BYTES):
        changed = bytearray(original)
        changed[index] ^= 1 << (index % 8)
        verdict = judge(vector, report=bytes(changed))
        assert not verdict.accepted, f"byte {index:#x}"
        assert verdict.claims is None, f"byte {index:#x}"


@pytest.mark.parametrize("vector", GENUINE[:1], ids=named)
def test_report_when_any_byte_of_the_signature_field_is_changed_then_refused(vector: SnpVector) -> None:
    original = vector.report
    for index in range(SIGNED_BYTES, len(original)):
        changed = bytearray(original)
        changed[index] ^= 1
        assert not judge(vector, report=bytes(changed)).accepted, f"byte {index:#x}"


@pytest.mark.parametrize("vector", GENUINE, ids=named)
def test_certificate_when_of_another_vector_then_refused(vector: SnpVector) -> None:
    other = next(one for one in GENUINE if one.expected["chip_id"] != vector.expected["chip_id"])
    assert not judge(vector, certificates=other.certificates).accepted


def test_certificate_when_labelled_invalid_then_refused() -> None:
    vector = next(one for one in GENUINE if one.name == "milan-v2-trustee")
    for path in sorted((SNP / "negative-vcek-certs").glob("*.der")):
        codes = {one.code for one in judge(vector, certificates=(path.read_bytes(),)).failures}
        assert {"SNP_CHAIN_SIGNATURE", "SNP_SIGNATURE", "SNP_CERT_HWID"} <= codes


def test_certificate_when_its_hwid_is_wrapped_then_the_octet_string_is_opened() -> None:
    wrapped = parse_certificate((SNP / "negative-vcek-certs/test-vcek-invalid-new.der").read_bytes())
    assert parse_amd_extensions(wrapped).hwid == bytes(range(64))


def test_vcek_when_of_turin_alone_then_its_extensions_are_those_expected() -> None:
    expected = json.loads((SNP / "turin-vcek-only-virtee/expected.json").read_text())["extensions"]
    extensions = parse_amd_extensions(parse_certificate((SNP / "turin-vcek-only-virtee/vcek.der").read_bytes()))
    assert extensions.hwid is not None
    assert extensions.hwid.hex() == expected["hwid"]
    assert (extensions.spl["fmc"], extensions.spl["microcode"]) == (expected["fmc_spl"], expected["ucode_spl"])


def test_vlek_when_it_lies_beside_a_report_it_did_not_sign_then_refused() -> None:
    vector = next(one for one in UNVERIFIED if one.name == "unverified-v2-vlek-constellation")
    vlek = (vector.path / "vlek_unrelated.pem").read_bytes()
    codes = {one.code for one in judge(vector, certificates=(vlek,)).failures}
    assert "SNP_SIGNATURE" in codes


def test_certificate_table_when_it_holds_pem_then_the_report_verifies_by_it_alone() -> None:
    vector = next(one for one in GENUINE if one.name == "genoa-v3-veraison")
    table = (vector.path / "certtable.bin").read_bytes()
    evidence = Evidence(EvidenceType.SEV_SNP, vector.report, attachments={ATTACHMENT: table})
    assert appraiser().appraise(evidence, report_data=None, now=when(vector)).accepted


def test_certificates_when_the_same_key_has_two_then_either_verifies() -> None:
    for vector in GENUINE:
        for second in vector.path.glob("vcek_2.der"):
            late = datetime(2026, 6, 1, tzinfo=UTC)
            evidence = Evidence(EvidenceType.SEV_SNP, vector.report, (second.read_bytes(),))
            assert appraiser().appraise(evidence, report_data=None, now=late).accepted


def test_shipped_certificates_when_compared_then_they_are_those_of_the_index() -> None:
    from hashlib import sha256

    index = json.loads((SNP / "certs/index.json").read_text())
    wanted = [
        index[product][kind]["sha256_der"] for product in ("Milan", "Genoa", "Turin") for kind in ("ark", "ask", "asvk")
    ]
    assert [sha256(one).hexdigest() for one in amd_certificates()] == wanted


@pytest.mark.parametrize("vector", GENUINE, ids=named)
def test_verify_command_when_offline_with_the_leaf_then_exits_0(vector: SnpVector) -> None:
    arguments = ["verify", "--report", str(vector.path / "report.bin"), "--cert", str(vector.leaf_path)]
    result = CliRunner().invoke(cli, [*arguments, "--offline", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["accepted"] is True


@pytest.mark.parametrize("vector", UNVERIFIED, ids=named)
def test_verify_command_when_no_leaf_is_to_be_had_then_exits_4(vector: SnpVector) -> None:
    result = CliRunner().invoke(cli, ["verify", "--report", str(vector.path / "report.bin"), "--offline", "--json"])
    assert result.exit_code == 4


def test_pem_bundle_when_split_then_each_certificate_is_found() -> None:
    assert len(split_certificates(((SNP / "certs/milan/vcek_chain.pem").read_bytes(),))) == 2


def test_evidence_when_expired_leaf_is_judged_now_then_refused() -> None:
    vector = next(one for one in GENUINE if one.name == "milan-v2-vlek-openanolis")
    evidence = Evidence(EvidenceType.SEV_SNP, vector.report, vector.certificates)
    verdict = appraiser().appraise(evidence, report_data=None, now=datetime(2026, 6, 1, tzinfo=UTC))
    assert [one.code for one in verdict.failures] == ["SNP_CERT_EXPIRED"]


def test_verdict_when_the_report_is_debug_then_the_safe_default_refuses_it() -> None:
    vector = next(one for one in GENUINE if one.name == "milan-v2-go-sev-guest")
    strict = appraiser().with_policy(None)
    evidence = Evidence(EvidenceType.SEV_SNP, vector.report, vector.certificates)
    verdict = strict.appraise(evidence, report_data=None, now=when(vector))
    assert [one.field for one in verdict.failures] == ["policy debug"]
