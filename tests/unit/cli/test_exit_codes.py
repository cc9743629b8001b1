"""One table of exit codes for every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagegate.cli import exit_code, run
from pagegate.errors import ConfigError, EndorsementError, HandshakeError
from pagegate.evidence.model import Failure, Verdict
from pagegate.handshake.appraise import EvidenceRejectedError


def rejected(code: str) -> EvidenceRejectedError:
    return EvidenceRejectedError(Verdict(False, False, (Failure(code, "field", "this", "that", "source"),), None))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EndorsementError("ENDORSEMENT_OFFLINE", ""), 4),
        (rejected("SNP_ENDORSEMENT_MISSING"), 4),
        (rejected("SNP_MEASUREMENT"), 2),
        (HandshakeError("EVIDENCE_REJECTED", "by the server"), 2),
        (HandshakeError("PEER_UNAVAILABLE", ""), 1),
        (ConfigError("REGION", ""), 1),
    ],
)
def test_exit_code_when_an_error_ends_a_command_then_is_of_the_table(error, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize("command", [["serve", "--region=book=1MiB"], ["send", "127.0.0.1:1", "book", "-"]])
def test_command_when_the_endorsement_cache_is_unusable_then_exits_4(
    tmp_path: Path, simulated_root, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nidentities:\n  - name: any\n    accept_any_measurement: true\n")
    flags = [f"--policy={policy}", "--platform=simulated", "--allow-simulated", f"--state-dir={tmp_path}"]
    flags += [f"--simulated-root={simulated_root._directory}", f"--endorsement-cache={tmp_path}"]
    assert run([*command, *flags]) == 4
    assert "ENDORSEMENT_CACHE_UNUSABLE" in capsys.readouterr().err
