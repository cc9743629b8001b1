"""`pagegate measure` gives the known answers of launch measurements."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from pagegate.cli import cli
from vectors import folder, needs_vectors

pytestmark = needs_vectors

FOLDER = folder() / "sev-snp/launch-measurement"
CASES = json.loads((FOLDER / "expected.json").read_text())["cases"] if FOLDER.is_dir() else []
SNP = [case for case in CASES if case["inputs"]["mode"].startswith("SEV_SNP")]


def arguments(inputs: dict[str, Any]) -> list[str]:
    """The command line of a case."""
    found = ["measure", "--ovmf", str(FOLDER / inputs["ovmf"]), "--vcpus", str(inputs["vcpus"])]
    found += ["--guest-features", hex(inputs["guest_features"]), "--vmm", inputs.get("vmm_type", "qemu").lower()]
    if inputs["mode"] == "SEV_SNP_SVSM":
        found += ["--mode", "snp-svsm", "--svsm", str(FOLDER / inputs["svsm_file"])]
        found += ["--vars-size", str(inputs["svsm_vars_size"])]
    if inputs["vcpu"] is not None:
        found += ["--vcpu-type", inputs["vcpu"]["vcpu_type"]]
    for option in ("kernel", "initrd", "append"):
        if inputs[option] is not None:
            found += [f"--{option}", inputs[option]]
    if inputs.get("snp_ovmf_hash_str"):
        found += ["--ovmf-hash", inputs["snp_ovmf_hash_str"]]
    return found


def test_cases_when_looked_for_then_all_are_there() -> None:
    assert len(SNP) == 13


@pytest.mark.parametrize("case", SNP, ids=lambda case: case["name"])
def test_measurement_when_computed_then_it_is_the_known_answer(case: dict[str, Any]) -> None:
    result = CliRunner().invoke(cli, [*arguments(case["inputs"]), "--json"])
    if case["expected_error"] is not None:
        assert case["expected_error"] in str(result.exception)
    else:
        assert json.loads(result.stdout) == {"measurement": case["expected_launch_digest"]}
