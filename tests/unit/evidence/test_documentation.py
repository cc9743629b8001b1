"""docs/verification.md says what the code does, and every check has a test that proves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagegate.evidence.snp.catalogue import entries
from pagegate.evidence.snp.docs import BEGIN, END, main, proofs, unproven, updated
from vectors import ROOT


def test_verification_table_when_compared_with_the_code_then_up_to_date() -> None:
    document = (ROOT / "docs/verification.md").read_text()
    assert updated(document, proofs(ROOT / "tests")) == document


def test_checks_when_listed_then_each_has_a_test_that_proves_it() -> None:
    assert unproven(proofs(ROOT / "tests")) == ()


def test_reason_codes_when_listed_then_none_is_given_to_two_checks() -> None:
    codes = [one.code for one in entries()]
    assert len(codes) == len(set(codes))


def test_table_when_out_of_date_then_the_check_fails_and_writing_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "verification.md"
    document.write_text(f"head\n{BEGIN}\nold\n{END}\ntail\n")
    tests = str(ROOT / "tests")
    assert main(["--check", str(document), tests]) == 1
    assert "out of date" in capsys.readouterr().err
    assert main([str(document), tests]) == 0
    assert main(["--check", str(document), tests]) == 0


def test_table_when_a_check_has_no_test_then_it_fails(tmp_path: Path) -> None:
    document = tmp_path / "verification.md"
    document.write_text(f"{BEGIN}\n{END}")
    (tmp_path / "tests").mkdir()
    assert main([str(document), str(tmp_path / "tests")]) == 1


def test_document_when_it_lacks_the_markers_then_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        updated("no markers", {})
