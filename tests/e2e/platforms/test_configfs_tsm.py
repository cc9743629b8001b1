"""The configfs-tsm provider in a real process, over a stand-in that keeps the kernel's ABI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

REPORT_DATA = bytes(range(100, 164))
RequireSigned = Callable[[dict[str, Any]], None]


class Guest:
    """The fake machine, asked through its configfs root."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine

    def ask(self, kind: str = "configfs-tsm", **options: Any) -> dict[str, Any]:
        outcome: dict[str, Any] = self.machine.ask(kind, root=str(self.machine.tsm_root), **options)
        return outcome

    def require_tidy(self) -> None:
        assert list(self.machine.tsm_root.iterdir()) == []


@pytest.fixture
def guest(make_machine: Callable[[str], Any]) -> Guest:
    return Guest(make_machine("fake_configfs_tsm"))


def test_attest_when_all_is_well_gives_a_signed_report_and_the_hosts_certificates(
    guest: Guest, require_signed: RequireSigned
) -> None:
    outcome = guest.ask(report_data=REPORT_DATA.hex())

    require_signed(outcome)
    assert bytes.fromhex(outcome["report"])[0x50:0x90] == REPORT_DATA
    assert outcome["certificates"] == [certificate.hex() for certificate in guest.machine.chip.certificates]
    assert (outcome["platform"], outcome["simulated"], outcome["type"]) == ("configfs-tsm", False, "sev-snp")
    assert guest.machine.calls == ["mkdir", "rmdir"]
    guest.require_tidy()


def test_attest_when_chosen_by_detection_works_alike(guest: Guest, require_signed: RequireSigned) -> None:
    outcome = guest.ask("auto")

    require_signed(outcome)
    assert outcome["platform"] == "configfs-tsm"


def test_attest_when_certificates_are_not_wanted_gives_none(guest: Guest, require_signed: RequireSigned) -> None:
    outcome = guest.ask(certificates=False)

    require_signed(outcome)
    assert outcome["certificates"] == []


def test_attest_when_the_kernel_shows_no_auxblob_gives_no_certificates(
    guest: Guest, require_signed: RequireSigned
) -> None:
    guest.machine.environment = {"FAKE_TSM_HIDDEN": "auxblob privlevel_floor"}

    outcome = guest.ask()

    require_signed(outcome)
    assert outcome["certificates"] == []


def test_attest_when_the_floor_is_above_zero_asks_for_the_floor(guest: Guest, require_signed: RequireSigned) -> None:
    guest.machine.environment = {"FAKE_SNP_VMPL": "2"}

    outcome = guest.ask()

    require_signed(outcome)
    assert bytes.fromhex(outcome["report"])[0x30] == 2
    assert "write privlevel 2" in guest.machine.calls


def test_attest_when_a_privlevel_is_named_asks_for_it(guest: Guest, require_signed: RequireSigned) -> None:
    outcome = guest.ask(privlevel=3)

    require_signed(outcome)
    assert bytes.fromhex(outcome["report"])[0x30] == 3


def test_attest_when_the_privlevel_is_below_the_floor_is_refused_with_both(guest: Guest) -> None:
    guest.machine.environment = {"FAKE_SNP_VMPL": "2"}

    outcome = guest.ask(privlevel=1)

    assert outcome["reason"] == "TSM_PRIVLEVEL_TOO_LOW"
    assert "privlevel 1 was asked for, this guest may ask for 2" in outcome["message"]
    guest.require_tidy()


def test_attest_when_a_service_provider_is_named_writes_it(guest: Guest, require_signed: RequireSigned) -> None:
    outcome = guest.ask(service_provider="svsm")

    require_signed(outcome)
    assert "write service_provider svsm" in guest.machine.calls


def test_attest_when_somebody_else_writes_once_asks_again_in_a_new_entry(
    guest: Guest, require_signed: RequireSigned
) -> None:
    guest.machine.go_wrong("intrude")

    outcome = guest.ask()

    require_signed(outcome)
    assert guest.machine.calls == ["mkdir", "rmdir"] * 2


def test_attest_when_somebody_else_keeps_writing_gives_up(guest: Guest) -> None:
    guest.machine.go_wrong(*["intrude"] * 9)

    outcome = guest.ask()

    assert outcome["reason"] == "TSM_REPORT_RACED"
    assert "from 0 to 2 in 1 writes" in outcome["message"]
    guest.require_tidy()


def test_attest_when_the_kernel_loses_the_write_of_inblob_is_refused(guest: Guest) -> None:
    guest.machine.go_wrong("lose inblob")

    outcome = guest.ask()

    assert outcome["reason"] == "TSM_REPORT_FAILED"
    guest.require_tidy()


@pytest.mark.parametrize("line", ["mkdir errno=16", "read outblob errno=11", "read outblob errno=16"])
def test_attest_when_the_kernel_is_busy_for_a_while_succeeds(
    guest: Guest, require_signed: RequireSigned, line: str
) -> None:
    guest.machine.go_wrong(line, line)

    require_signed(guest.ask())
    guest.require_tidy()


def test_attest_when_the_kernel_stays_busy_gives_up_and_says_when_to_return(guest: Guest) -> None:
    guest.machine.go_wrong(*["read outblob errno=16"] * 9)

    outcome = guest.ask()

    assert outcome["reason"] == "TSM_BUSY"
    assert outcome["retry_after"] == 2.0
    guest.require_tidy()


@pytest.mark.parametrize(
    ("line", "reason", "said"),
    [
        ("mkdir errno=6", "TSM_UNAVAILABLE", "no driver serves it"),
        ("mkdir errno=13", "TSM_UNAVAILABLE", "run as root"),
        ("write inblob errno=14", "TSM_REPORT_FAILED", "Bad address"),
        ("read outblob errno=22", "TSM_REPORT_FAILED", "privilege level"),
        ("read outblob errno=25", "TSM_REPORT_FAILED", "VMPCK"),
        ("read outblob errno=110", "TSM_REPORT_FAILED", "throttles"),
        ("read outblob errno=5", "TSM_REPORT_FAILED", "the firmware or the host refused"),
        ("flip outblob", "REPORT_UNEXPECTED", "other report data"),
        ("cut outblob", "REPORT_UNEXPECTED", "1183 bytes"),
    ],
)
def test_attest_when_something_fails_says_what_and_leaves_no_entry(
    guest: Guest, line: str, reason: str, said: str
) -> None:
    guest.machine.go_wrong(line)

    outcome = guest.ask()

    assert outcome["reason"] == reason
    assert said in outcome["message"]
    guest.require_tidy()


def test_attest_when_the_entry_cannot_be_removed_still_gives_evidence_and_warns(
    guest: Guest, require_signed: RequireSigned
) -> None:
    guest.machine.go_wrong("rmdir errno=16")

    outcome = guest.ask()

    require_signed(outcome)
    assert "cannot remove" in outcome["stderr"]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"FAKE_TSM_PROVIDER": "tdx_guest"}, "TSM_PROVIDER_UNSUPPORTED"),
        ({"FAKE_TSM_GENERATION": "many"}, "TSM_ATTRIBUTE_INVALID"),
        ({"FAKE_TSM_GENERATION": "9" * 5000}, "TSM_ATTRIBUTE_INVALID"),
    ],
)
def test_attest_when_an_attribute_is_not_as_documented_is_refused(
    guest: Guest, environment: dict[str, str], reason: str
) -> None:
    guest.machine.environment = environment

    outcome = guest.ask()

    assert outcome["reason"] == reason
    guest.require_tidy()


def test_attest_when_the_certificate_table_is_malformed_is_refused(guest: Guest) -> None:
    guest.machine.set_table(b"\x01" * 100)

    outcome = guest.ask()

    assert outcome["reason"] == "CERTIFICATE_TABLE_MALFORMED"
    guest.require_tidy()
