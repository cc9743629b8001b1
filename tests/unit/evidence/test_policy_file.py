"""A policy file says what it means or is refused with file, line and key."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import jsonschema
import pytest
import yaml

from pagegate.errors import PolicyError
from pagegate.evidence.model import AccessMode
from pagegate.evidence.policy import load_policy, parse_policy
from pagegate.evidence.policy.explain import compare, explain, unverified
from pagegate.evidence.policy.reload import PolicyFile
from pagegate.evidence.policy.schema import schema_text
from support.snp import Case, policy_text
from vectors import ROOT

MEASUREMENT = "ab" * 48


def error_of(text: str) -> str:
    """What is wrong with a policy."""
    with pytest.raises(PolicyError) as caught:
        parse_policy(text.encode(), name="p.yaml")
    assert caught.value.reason == "POLICY_INVALID"
    return caught.value.message


def with_identity(rules: str) -> str:
    return f"version: 1\nidentities:\n  - name: a\n    measurements: [{MEASUREMENT}]\n    {rules}\n"


def test_policy_when_loaded_then_its_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy_text())
    assert load_policy(path).digest == sha256(path.read_bytes()).hexdigest()


def test_policy_when_the_file_is_not_there_then_unreadable(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="POLICY_UNREADABLE"):
        load_policy(tmp_path / "none.yaml")


def test_policy_when_too_large_then_refused() -> None:
    assert "bytes" in error_of("#" * (1024 * 1024 + 1))


@pytest.mark.parametrize(
    ("rules", "line", "message"),
    [
        ("measurments: []", 5, "unknown key"),
        ("vmpl: [4]", 5, "vmpl"),
        ("vmpl: []", 5, "vmpl"),
        ("host_data: [abcd]", 5, "must be 64 hexadecimal digits"),
        ("chip_ids: [abcd]", 5, "must be 16 or 128 hexadecimal digits"),
        ("chip_ids: [abcdefabcdefabcdz]", 5, "hexadecimal"),
        ("guest_policy: {require: [bogus]}", 5, "guest_policy.require"),
        ("guest_policy: {require: [debug]}", 5, "both required and forbidden"),
        ("platform: {require: [ecc], forbid: [ecc]}", 5, "both required and forbidden"),
        ("tcb: {Milan: {reported: {}}}", 5, "names no part"),
        ("tcb: {Milan: {}}", 5, "has no floor"),
        ("tcb: {Milan: {reported: {fmc: 1}}}", 3, "only Turin"),
        ("tcb: {Rome: {reported: {snp: 1}}}", 5, "Rome"),
        ("tcb: {Milan: {reported: {snp: 256}}}", 5, "less than or equal to 255"),
        ("minimum_firmware: '1.x'", 5, "version"),
        ("minimum_firmware: '1.999'", 5, "at most 255"),
        ("minimum_firmware: 1", 5, "version"),
        ("regions: {book: execute}", 5, "regions.book"),
        ("regions: {'../x': read}", 5, "regions"),
        ("accept_any_measurement: true", 1, "contradict"),
        ("signing_keys: [vcek]\n    csp_ids: [x]", 3, "never used"),
        ("measurements: []", 5, "given twice"),
    ],
)
def test_identity_when_a_key_is_wrong_then_file_line_and_key_are_said(rules: str, line: int, message: str) -> None:
    error = error_of(with_identity(rules))
    assert message in error
    assert error.startswith(f"p.yaml:{line}: ")


def test_identity_when_a_nested_key_is_wrong_then_its_own_line_is_said() -> None:
    assert error_of(with_identity("tcb:\n      Milan:\n        reported:\n          snp: -1")).startswith("p.yaml:8: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("[]", "dictionary"),
        ("version: 1", "identities: is missing"),
        ("version: 2\nidentities: [{name: a, accept_any_measurement: true}]", "version"),
        ("version: 1\nidentities: []", "identities"),
        ("version: 1\nidentities: [{name: a}]", "any guest would match"),
        ("version: 1\nidentities: [{name: 'a b', accept_any_measurement: true}]", "name"),
        ("version: 1\nclock_skew: 5\nidentities: [{name: a, accept_any_measurement: true}]", "a number and a unit"),
        (
            "version: 1\nproducts: [Milan]\nidentities:\n- {name: a, accept_any_measurement: true, tcb: {Genoa: {launch: {snp: 1}}}}",
            "never used",
        ),
        (
            "version: 1\ndefaults: {vmpl: [0]}\nidentities: [{name: a, accept_any_measurement: true, vmpl: [1]}]",
            "never used",
        ),
        (
            "version: 1\ndefaults: {signing_keys: [vcek]}\nidentities: [{name: a, accept_any_measurement: true, csp_ids: [x]}]",
            "never used",
        ),
        (
            "version: 1\nidentities: [{name: a, accept_any_measurement: true}, {name: a, accept_any_measurement: true}]",
            "given twice",
        ),
        ("a: &x 1\nb: *x", "aliases"),
        ("version: !!python/object/apply:os.system ['true']", "version"),
        ("? [a]\n: b", "plain text"),
        ("a: [", "not YAML"),
        ("[" * 40 + "]" * 40, "nested deeper"),
        ("\x00", "not YAML"),
    ],
)
def test_policy_when_wrong_as_a_whole_then_it_says_why(text: str, message: str) -> None:
    assert message in error_of(text)


def test_policy_when_not_utf8_then_refused() -> None:
    with pytest.raises(PolicyError, match="UTF-8"):
        parse_policy(b"\xff\xfe")


def test_measurement_when_all_digits_and_unquoted_then_its_zeros_are_kept() -> None:
    digits = "00" + "12" * 47
    policy = parse_policy(with_identity("").replace(MEASUREMENT, digits).encode())
    assert policy.identities[0].measurements == (bytes.fromhex(digits),)


def test_defaults_when_an_identity_has_its_own_then_its_own_counts() -> None:
    policy = parse_policy(
        f"version: 1\ndefaults: {{vmpl: [1], minimum_guest_svn: 3}}\n"
        f"identities:\n  - {{name: a, measurements: [{MEASUREMENT}]}}\n"
        f"  - {{name: b, measurements: [{MEASUREMENT}], vmpl: [2]}}\n".encode()
    )
    assert [(one.vmpl, one.minimum_guest_svn) for one in policy.identities] == [((1,), 3), ((2,), 3)]


def test_policy_when_parsed_then_safe_defaults_hold() -> None:
    identity = parse_policy(with_identity("").encode()).identities[0]
    assert identity.guest_policy.forbid == ("debug", "migration-agent")
    assert (identity.provisional_firmware, identity.masked_chip_id, identity.csp_ids) == (False, False, None)
    assert identity.regions == {}


def test_regions_when_given_then_modes_are_typed() -> None:
    policy = parse_policy(with_identity("regions: {book: read, '*': read-write}").encode())
    assert policy.identities[0].regions == {"book": AccessMode.READ, "*": AccessMode.READ_WRITE}


def test_schema_when_shipped_then_it_is_that_of_the_model() -> None:
    assert (ROOT / "docs/policy.schema.json").read_text() == schema_text()


def test_schema_when_asked_then_it_accepts_what_the_loader_accepts() -> None:
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(yaml.safe_load(policy_text("vmpl: [0]\nminimum_firmware: '1.55'")))
    assert not validator.is_valid(yaml.safe_load(policy_text("bogus: 1")))
    assert not validator.is_valid(yaml.safe_load(policy_text("host_data: ['00']")))


def test_example_in_the_docs_when_loaded_then_usable() -> None:
    document = (ROOT / "docs/policy.md").read_text()
    example = document.split("```yaml\n", 1)[1].split("```", 1)[0]
    assert [one.name for one in parse_policy(example.encode()).identities] == ["matching-engine", "risk"]


def changed(path: Path, text: str) -> None:
    """Writes another file in place of this one, as a ConfigMap update does."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


def test_policy_file_when_unchanged_then_nothing_is_reloaded(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(policy_text())
    assert not PolicyFile(path).refresh().changed


def test_policy_file_when_changed_then_the_new_policy_is_in_force(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(policy_text())
    file = PolicyFile(path)
    changed(path, policy_text("vmpl: [0]"))
    reload = file.refresh()
    assert (reload.changed, reload.error, file.policy.identities[0].vmpl) == (True, None, (0,))


@pytest.mark.parametrize("broken", ["bogus: 1", None])
def test_policy_file_when_broken_or_gone_then_the_old_stays_in_force_and_it_says_so(
    tmp_path: Path, broken: str | None
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(policy_text())
    file = PolicyFile(path)
    before = file.policy
    if broken is None:
        path.unlink()
    else:
        changed(path, broken)
    reload = file.refresh()
    assert (reload.policy is before, reload.changed) == (True, False)
    assert reload.error is not None
    assert file.refresh().error is reload.error


def test_policy_file_when_only_touched_then_no_session_need_be_judged_again(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(policy_text())
    file = PolicyFile(path)
    changed(path, policy_text())
    assert not file.refresh().changed
    assert not file.refresh(force=True).changed


def test_explain_when_asked_then_every_check_of_every_identity_is_there(milan: Case) -> None:
    policy = parse_policy(policy_text("vmpl: [3]").encode())
    rows = list(explain(policy, unverified(milan.report)))
    assert [row.code for row in rows if not row.holds] == ["SNP_VMPL"]
    assert {row.identity for row in rows} == {"", "guest"}


@pytest.mark.parametrize(
    ("current", "new", "outcome"),
    [
        (None, "", "let in"),
        ("", "vmpl: [3]", "thrown out"),
        ("", "vmpl: [0]", "kept"),
        ("vmpl: [3]", "vmpl: [2]", "kept out"),
    ],
)
def test_compare_when_two_policies_differ_then_it_says_how(
    milan: Case, current: str | None, new: str, outcome: str
) -> None:
    before = None if current is None else parse_policy(policy_text(current).encode())
    tried = compare(before, parse_policy(policy_text(new).encode()), unverified(milan.report))
    assert tried.outcome == outcome


def test_compare_when_another_identity_matches_then_moved(milan: Case) -> None:
    new = parse_policy(policy_text().replace("name: guest", "name: other").encode())
    assert compare(parse_policy(policy_text().encode()), new, unverified(milan.report)).outcome == "moved"
