"""verify, show, policy and measure, as an operator calls them."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pagegate.cli import run
from pagegate.cli._evidence import GivenEndorsements, OnlineEndorsements
from pagegate.evidence.ear import verify_result
from pagegate.evidence.model import EndorsementRequest, Evidence, KeyKind
from pagegate.platforms.simulated import SimulatedPlatform, SimulatedRoot, measurement_of
from support.snp import Source, policy_text

MEASUREMENT = measurement_of(b"cli")


@pytest.fixture(scope="session")
def evidence(simulated_root: SimulatedRoot) -> Evidence:
    """What a simulated guest says, its certificates with it."""
    return SimulatedPlatform(simulated_root.chip("cli"), measurement=MEASUREMENT).attest(b"d" * 64)


@pytest.fixture
def files(tmp_path: Path, evidence: Evidence, simulated_root: SimulatedRoot) -> dict[str, Path]:
    """The evidence as files, and a policy that accepts it."""
    names = {"report": "report.bin", "cert": "vcek.der", "ask": "ask.der", "ark": "ark.pem", "policy": "policy.yaml"}
    found = {name: tmp_path / file for name, file in names.items()} | {"crl": tmp_path / "crl.der"}
    found["report"].write_bytes(evidence.report)
    found["cert"].write_bytes(evidence.certificates[0])
    found["ask"].write_bytes(evidence.certificates[1])
    found["ark"].write_bytes(evidence.certificates[2])
    found["crl"].write_bytes(simulated_root.crl_der)
    found["policy"].write_text(policy_text(pins=f"measurements: [{MEASUREMENT.hex()}]"))
    return found


def verify(files: dict[str, Path], *more: str, root: bool = True) -> int:
    arguments = ["verify", "--report", str(files["report"]), "--cert", str(files["cert"])]
    arguments += ["--chain", str(files["ask"]), "--chain", str(files["ark"]), "--offline"]
    if root:
        arguments += ["--allow-simulated", "--simulated-root", str(files["ark"])]
    return run([*arguments, *more])


Captured = pytest.CaptureFixture[str]


def printed(capsys: Captured) -> Any:
    return json.loads(capsys.readouterr().out)


def test_verify_when_the_policy_accepts_then_0_and_simulated_is_said(files: dict[str, Path], capsys: Captured) -> None:
    assert verify(files, "--policy", str(files["policy"])) == 0
    out = capsys.readouterr().out
    assert out.startswith("ACCEPTED\nSIMULATED")
    assert "No --policy" not in out


def test_verify_when_without_policy_then_it_says_what_was_not_asked(files: dict[str, Path], capsys: Captured) -> None:
    assert verify(files) == 0
    assert "No --policy" in capsys.readouterr().out


def test_verify_when_the_simulated_root_is_not_named_then_2(files: dict[str, Path], capsys: Captured) -> None:
    assert verify(files, "--json", root=False) == 2
    assert "SNP_ROOT_UNTRUSTED" in {one["code"] for one in printed(capsys)["failures"]}


def test_verify_when_simulated_is_not_allowed_then_2(files: dict[str, Path], capsys: Captured) -> None:
    assert verify(files, "--simulated-root", str(files["ark"]), "--json", root=False) == 2
    assert [one["code"] for one in printed(capsys)["failures"]] == ["SIMULATED_EVIDENCE_REFUSED"]


def test_verify_when_report_data_differs_then_2(files: dict[str, Path]) -> None:
    assert verify(files, "--report-data", "00" * 64) == 2
    assert verify(files, "--report-data", (b"d" * 64).hex()) == 0


def test_verify_when_a_crl_is_given_then_no_warning_of_it(files: dict[str, Path], capsys: Captured) -> None:
    assert verify(files, "--crl", str(files["crl"]), "--json") == 0
    assert "SNP_CRL_MISSING" not in {one["code"] for one in printed(capsys)["warnings"]}


def test_verify_when_at_is_after_expiry_then_2_and_without_at_a_warning_would_do(
    files: dict[str, Path], capsys: Captured
) -> None:
    assert verify(files, "--at", "2099-01-01", "--json") == 2
    assert "SNP_CERT_EXPIRED" in {one["code"] for one in printed(capsys)["failures"]}


@pytest.mark.parametrize("size", [0, 1183, 1185])
def test_verify_when_the_report_has_another_size_then_3(files: dict[str, Path], size: int) -> None:
    files["report"].write_bytes(bytes(size))
    assert verify(files) == 3


def test_verify_when_a_file_is_not_there_or_junk_then_3_with_the_reason(
    files: dict[str, Path], capsys: Captured
) -> None:
    files["cert"].write_bytes(b"junk")
    assert verify(files, "--json") == 3
    assert printed(capsys)["error"]["reason"] == "SNP_CERT_MALFORMED"
    files["cert"].unlink()
    assert verify(files) == 3


def test_verify_when_the_policy_is_broken_then_3(files: dict[str, Path], capsys: Captured) -> None:
    files["policy"].write_text("bogus: 1")
    assert verify(files, "--policy", str(files["policy"])) == 3
    assert "policy.yaml:1: bogus: unknown key" in capsys.readouterr().err


def test_verify_when_the_leaf_is_nowhere_then_4(files: dict[str, Path]) -> None:
    assert run(["verify", "--report", str(files["report"]), "--offline"]) == 4


@pytest.mark.parametrize(
    "wrong", [["--report-data", "zz"], ["--report-data", "00"], ["--at", "yesterday"], ["--ear", "x"]], ids=str
)
def test_verify_when_the_command_line_is_wrong_then_64(files: dict[str, Path], wrong: list[str]) -> None:
    assert verify(files, *wrong) == 64


def test_verify_when_the_root_named_is_not_a_simulated_one_then_3(files: dict[str, Path]) -> None:
    assert verify(files, "--simulated-root", str(files["ask"])) == 3


def test_verify_when_an_ear_is_asked_for_then_a_relying_party_can_check_it(
    files: dict[str, Path], tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    assert verify(files, "--ear", str(tmp_path / "ear.jwt"), "--ear-key", str(tmp_path / "key.pem")) == 0
    token = (tmp_path / "ear.jwt").read_text().strip()
    claims = verify_result(token, key.public_key(), now=datetime.now(UTC))
    assert claims["submods"]["sev-snp"]["ear_trustworthiness_vector"]["hardware"] == 97


def test_verify_when_the_ear_key_is_unsuitable_then_3(files: dict[str, Path], tmp_path: Path) -> None:
    key_path = tmp_path / "key.pem"
    arguments = ("--ear", str(tmp_path / "ear.jwt"), "--ear-key", str(key_path))
    key_path.write_bytes(b"junk")
    assert verify(files, *arguments) == 3
    key = rsa.generate_private_key(65537, 2048)
    key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert verify(files, *arguments) == 3


def test_show_when_a_report_is_given_then_each_field_is_there(files: dict[str, Path], capsys: Captured) -> None:
    assert run(["show", str(files["report"]), "--json"]) == 0
    shown = printed(capsys)
    assert shown["measurement"] == MEASUREMENT.hex()
    assert (shown["verified"], shown["oddities"]) == (False, [])
    assert run(["show", str(files["report"])]) == 0
    assert "not verified" in capsys.readouterr().out


def test_show_when_a_reserved_field_is_set_then_it_is_pointed_out(files: dict[str, Path], capsys: Captured) -> None:
    data = bytearray(files["report"].read_bytes())
    data[0x4C] = 1
    files["report"].write_bytes(data)
    assert run(["show", str(files["report"])]) == 0
    assert "odd: SNP_RESERVED_NOT_ZERO" in capsys.readouterr().out


def test_show_when_not_a_report_then_3(files: dict[str, Path]) -> None:
    assert run(["show", str(files["cert"])]) == 3
    assert run(["show", str(files["cert"]) + ".none"]) == 3


def test_policy_check_when_usable_then_0(files: dict[str, Path], capsys: Captured) -> None:
    assert run(["policy", "check", str(files["policy"]), "--json"]) == 0
    assert printed(capsys)["identities"] == ["guest"]
    assert run(["policy", "check", str(files["policy"])]) == 0


def test_policy_check_when_not_usable_then_3(files: dict[str, Path]) -> None:
    assert run(["policy", "check", str(files["report"])]) == 3


def test_policy_schema_when_printed_then_json(capsys: Captured) -> None:
    assert run(["policy", "schema"]) == 0
    assert printed(capsys)["title"] == "pagegate policy"


def explain(files: dict[str, Path], *more: str) -> int:
    return run(["policy", "explain", str(files["report"]), "--policy", str(files["policy"]), *more])


def test_policy_explain_when_taken_at_its_word_then_it_says_so(files: dict[str, Path], capsys: Captured) -> None:
    assert explain(files) == 0
    out = capsys.readouterr().out
    assert "holds  SNP_MEASUREMENT" in out
    assert "taken at its word" in out


def test_policy_explain_when_a_check_fails_then_2_and_it_is_named(files: dict[str, Path], capsys: Captured) -> None:
    files["policy"].write_text(policy_text("vmpl: [3]", pins=f"measurements: [{MEASUREMENT.hex()}]"))
    assert explain(files, "--json") == 2
    failed = [one["code"] for one in printed(capsys)["checks"] if not one["holds"]]
    assert failed == ["SNP_VMPL"]


def test_policy_explain_when_certificates_are_given_then_verified_first(
    files: dict[str, Path], capsys: Captured
) -> None:
    chain = ["--cert", str(files["cert"]), "--chain", str(files["ask"]), "--chain", str(files["ark"]), "--offline"]
    assert explain(files, *chain, "--simulated-root", str(files["ark"])) == 0
    assert "genuine" in capsys.readouterr().out
    files["report"].write_bytes(files["report"].read_bytes()[:-1000] + bytes(1000))
    assert explain(files, *chain, "--json") == 2
    assert printed(capsys)["genuine"] is False


def test_policy_try_when_somebody_is_thrown_out_then_2(files: dict[str, Path], capsys: Captured) -> None:
    strict = files["policy"].with_name("strict.yaml")
    strict.write_text(policy_text("vmpl: [3]", pins=f"measurements: [{MEASUREMENT.hex()}]"))
    arguments = ["policy", "try", str(strict), "--current", str(files["policy"])]
    assert run([*arguments, "--against", str(files["report"].parent)]) == 2
    assert "thrown out" in capsys.readouterr().out
    assert run(["policy", "try", str(files["policy"]), "--against", str(files["report"]), "--json"]) == 0
    assert printed(capsys)[0]["outcome"] == "let in"


def test_policy_try_when_given_json_lines_then_each_is_tried(
    files: dict[str, Path], tmp_path: Path, evidence: Evidence, capsys: Captured
) -> None:
    lines = tmp_path / "audit.jsonl"
    encoded = (evidence.report.hex(), b64encode(evidence.report).decode())
    lines.write_text("\n".join(json.dumps({"report": one}) for one in encoded) + "\n\n")
    assert run(["policy", "try", str(files["policy"]), "--against", str(lines), "--json"]) == 0
    assert [one["after"] for one in printed(capsys)] == ["guest", "guest"]


@pytest.mark.parametrize("content", ['{"x": 1}', '{"report": 5}', '{"report": "00"}', "{"])
def test_policy_try_when_a_line_has_no_report_then_3(files: dict[str, Path], tmp_path: Path, content: str) -> None:
    lines = tmp_path / "audit.jsonl"
    lines.write_text(content)
    assert run(["policy", "try", str(files["policy"]), "--against", str(lines)]) == 3


def test_policy_try_when_nothing_is_found_then_3(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["policy", "try", str(files["policy"]), "--against", str(tmp_path / "empty")]) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["--vcpu-type", "Z80"],
        ["--vcpu-signature", "x"],
        ["--vcpu-signature", "-1"],
        ["--vcpu-type", "EPYC", "--vcpu-signature", "1"],
        ["--vcpu-type", "EPYC", "--append", "x"],
        ["--vcpu-type", "EPYC", "--mode", "snp-svsm"],
    ],
    ids=str,
)
def test_measure_when_the_command_line_is_wrong_then_64(files: dict[str, Path], wrong: list[str]) -> None:
    assert run(["measure", "--ovmf", str(files["cert"]), *wrong]) == 64


def test_measure_when_the_firmware_is_missing_or_junk_then_3(files: dict[str, Path]) -> None:
    assert run(["measure", "--ovmf", str(files["cert"]), "--vcpu-type", "EPYC"]) == 3
    assert run(["measure", "--ovmf", str(files["cert"]) + ".none", "--vcpu-type", "EPYC"]) == 3


def request(*, leaf: bool) -> EndorsementRequest:
    return EndorsementRequest("Milan", KeyKind.VCEK, bytes(64), bytes(8), need_leaf=leaf, need_chain=leaf)


def test_endorsements_when_the_command_line_has_all_then_nobody_else_is_asked() -> None:
    online = Source(leaf=b"online")
    source = OnlineEndorsements(GivenEndorsements(crl=b"given"), online)
    assert (source.find(request(leaf=False)).crl, online.asked) == (b"given", [])


def test_endorsements_when_a_leaf_is_needed_then_the_given_crl_still_counts() -> None:
    source = OnlineEndorsements(GivenEndorsements(crl=b"given"), Source(leaf=b"online", crl=b"other"))
    found = source.find(request(leaf=True))
    assert (found.leaf, found.crl) == (b"online", b"given")


def test_verify_when_online_and_the_cache_has_all_then_accepted(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEGATE_ENDORSEMENT_CACHE", str(tmp_path / "cache.db"))
    online = ["--cert", str(files["cert"]), "--chain", str(files["ask"]), "--chain", str(files["ark"])]
    simulated = ["--allow-simulated", "--simulated-root", str(tmp_path), "--crl", str(files["crl"])]
    assert run(["verify", "--report", str(files["report"]), *online, *simulated]) == 0


def test_verify_when_the_crl_is_pem_then_taken_and_when_broken_then_3(
    files: dict[str, Path], simulated_root: SimulatedRoot, capsys: Captured
) -> None:
    body = b64encode(simulated_root.crl_der)
    files["crl"].write_bytes(b"-----BEGIN X509 CRL-----\n" + body + b"\n-----END X509 CRL-----\n")
    assert verify(files, "--crl", str(files["crl"]), "--json") == 0
    assert printed(capsys)["warnings"] == []
    files["crl"].write_bytes(b"-----BEGIN X509 CRL-----\n!!\n-----END X509 CRL-----\n")
    assert verify(files, "--crl", str(files["crl"])) == 3


def test_verify_when_a_file_is_too_large_then_3(files: dict[str, Path]) -> None:
    files["report"].write_bytes(bytes(2 * 1024 * 1024))
    assert verify(files) == 3


def test_verify_when_the_ear_cannot_be_written_then_1(files: dict[str, Path], tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert verify(files, "--ear", str(tmp_path / "no" / "ear"), "--ear-key", str(tmp_path / "key.pem")) == 1


def test_explain_when_the_leaf_is_not_to_be_had_then_4(files: dict[str, Path]) -> None:
    arguments = ["policy", "explain", str(files["report"]), "--policy", str(files["policy"])]
    assert run([*arguments, "--cert", str(files["ask"]), "--offline"]) == 4
