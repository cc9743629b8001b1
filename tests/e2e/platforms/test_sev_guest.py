"""The /dev/sev-guest provider in a real process, over a stand-in of the device that keeps the kernel's ABI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

REPORT_DATA = bytes(range(100, 164))
RequireSigned = Callable[[dict[str, Any]], None]


@pytest.fixture
def machine(make_machine: Callable[[str], Any]) -> Any:
    return make_machine("fake_sev_guest")


def test_attest_when_all_is_well_gives_a_signed_report_and_the_hosts_certificates(
    machine: Any, require_signed: RequireSigned
) -> None:
    outcome = machine.ask("sev-guest", report_data=REPORT_DATA.hex())

    require_signed(outcome)
    assert bytes.fromhex(outcome["report"])[0x50:0x90] == REPORT_DATA
    assert outcome["certificates"] == [certificate.hex() for certificate in machine.chip.certificates]
    assert (outcome["platform"], outcome["simulated"], outcome["type"]) == ("sev-guest", False, "sev-snp")
    assert machine.calls == ["ioctl 2 certs_len 16384"]


def test_attest_when_certificates_are_not_wanted_asks_for_a_plain_report(
    machine: Any, require_signed: RequireSigned
) -> None:
    outcome = machine.ask("sev-guest", certificates=False)

    require_signed(outcome)
    assert outcome["certificates"] == []
    assert machine.calls == ["ioctl 0"]


def test_attest_when_the_host_has_no_certificates_gives_none(machine: Any, require_signed: RequireSigned) -> None:
    machine.set_table(b"")

    outcome = machine.ask("sev-guest")

    require_signed(outcome)
    assert outcome["certificates"] == []


def test_attest_when_the_certificate_buffer_is_short_asks_again_with_the_length_given(
    machine: Any, require_signed: RequireSigned
) -> None:
    machine.environment = {"FAKE_SNP_CERTS_WANTED": "0x6000", "FAKE_SNP_BLOB_MAX": "0x8000"}

    outcome = machine.ask("sev-guest")

    require_signed(outcome)
    assert len(outcome["certificates"]) == 3
    assert machine.calls == ["ioctl 2 certs_len 16384", "ioctl 2 certs_len 24576"]


def test_attest_when_the_kernel_takes_no_longer_buffer_says_how_to_go_without(machine: Any) -> None:
    machine.environment = {"FAKE_SNP_CERTS_WANTED": "0x6000"}

    outcome = machine.ask("sev-guest")

    assert outcome["reason"] == "SEV_GUEST_IOCTL_FAILED"
    assert "certificates off" in outcome["message"]


@pytest.mark.parametrize("wanted", ["0x7fff1000", "0x5800"])
def test_attest_when_the_host_wants_an_absurd_buffer_is_refused(machine: Any, wanted: str) -> None:
    machine.environment = {"FAKE_SNP_CERTS_WANTED": wanted}

    outcome = machine.ask("sev-guest")

    assert outcome["reason"] == "SEV_GUEST_CERTIFICATES_TOO_LARGE"
    assert f"asked for {int(wanted, 0)} bytes after 16384" in outcome["message"]
    assert len(machine.calls) == 1


def test_attest_when_the_host_always_wants_more_ends(machine: Any) -> None:
    machine.environment = {"FAKE_SNP_BLOB_MAX": "0x100000"}
    machine.go_wrong(*["ioctl errno=28"] * 5)

    outcome = machine.ask("sev-guest")

    assert outcome["reason"] == "SEV_GUEST_CERTIFICATES_TOO_LARGE"
    assert len(machine.calls) <= 3


@pytest.mark.parametrize("line", ["ioctl errno=11 vmm=2", "ioctl errno=11", "ioctl errno=16", "ioctl errno=5 vmm=2"])
def test_attest_when_the_host_is_busy_for_a_while_succeeds(
    machine: Any, require_signed: RequireSigned, line: str
) -> None:
    machine.go_wrong(line, line)

    outcome = machine.ask("sev-guest")

    require_signed(outcome)
    assert len(machine.calls) == 3


def test_attest_when_the_host_stays_busy_gives_up_and_says_when_to_return(machine: Any) -> None:
    machine.go_wrong(*["ioctl errno=11 vmm=2"] * 9)

    outcome = machine.ask("sev-guest")

    assert outcome["reason"] == "SEV_GUEST_BUSY"
    assert outcome["retry_after"] == 2.0
    assert len(machine.calls) == 3


@pytest.mark.parametrize(
    ("line", "reason", "said"),
    [
        ("ioctl errno=5 fw=0x16", "SEV_GUEST_FIRMWARE_ERROR", "0x16 INVALID_PARAM"),
        ("ioctl errno=5 fw=0x99", "SEV_GUEST_FIRMWARE_ERROR", "0x99 (not a code we know)"),
        ("ioctl fw=0x10", "SEV_GUEST_FIRMWARE_ERROR", "INVALID_GUEST"),
        ("ioctl errno=5 vmm=2147483648", "SEV_GUEST_HOST_ERROR", "2147483648"),
        ("ioctl errno=110", "SEV_GUEST_THROTTLED", "60 s"),
        ("ioctl errno=25", "SEV_GUEST_KEY_DISABLED", "VMPCK"),
        ("ioctl errno=5", "SEV_GUEST_IOCTL_FAILED", "errno 5"),
        ("ioctl status=0x16", "SEV_GUEST_FIRMWARE_ERROR", "option vmpl"),
        ("ioctl status=0x27", "SEV_GUEST_FIRMWARE_ERROR", "INVALID_KEY"),
        ("ioctl size=1183", "REPORT_UNEXPECTED", "1183 bytes"),
        ("ioctl size=4000", "REPORT_UNEXPECTED", "4000 bytes"),
        ("ioctl flip", "REPORT_UNEXPECTED", "other report data"),
    ],
)
def test_attest_when_something_fails_says_what(machine: Any, line: str, reason: str, said: str) -> None:
    machine.go_wrong(line)

    outcome = machine.ask("sev-guest")

    assert outcome["reason"] == reason
    assert said in outcome["message"]
    assert len(machine.calls) == 1


def test_attest_when_the_guest_runs_at_a_higher_vmpl_needs_that_asked_for(
    machine: Any, require_signed: RequireSigned
) -> None:
    machine.environment = {"FAKE_SNP_VMPL": "2"}

    refused = machine.ask("sev-guest", vmpl=1)
    accepted = machine.ask("sev-guest", vmpl=2)

    assert refused["reason"] == "SEV_GUEST_FIRMWARE_ERROR"
    require_signed(accepted)
    assert bytes.fromhex(accepted["report"])[0x30] == 2


def test_attest_when_the_certificate_table_is_malformed_is_refused(machine: Any) -> None:
    machine.set_table(b"\x01" * 4096)

    outcome = machine.ask("sev-guest")

    assert outcome["reason"] == "CERTIFICATE_TABLE_MALFORMED"


def test_derived_key_when_asked_for_twice_is_the_same_and_bound_to_the_fields(machine: Any) -> None:
    keys = [machine.ask("key", fields=fields)["key"] for fields in (0b001000, 0b001000, 0b101000)]

    assert len(bytes.fromhex(keys[0])) == 32
    assert keys[0] == keys[1] != keys[2]
    assert machine.calls == ["ioctl 1"] * 3


def test_derived_key_when_the_firmware_refuses_gives_no_key(machine: Any) -> None:
    machine.go_wrong("ioctl status=0x27")

    outcome = machine.ask("key", fields=0)

    assert outcome["reason"] == "SEV_GUEST_FIRMWARE_ERROR"
    assert "key" not in outcome
