"""The sealing key from /dev/sev-guest, asked for by the bridge itself, over a stand-in of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def machine(make_machine: Callable[[str], Any]) -> Any:
    return make_machine("fake_sev_guest")


def ask(machine: Any, **options: Any) -> dict[str, Any]:
    outcome: dict[str, Any] = machine.ask("sealing", home=str(machine.home), **options)
    return outcome


def test_snp_key_when_asked_again_opens_what_was_sealed(machine: Any) -> None:
    assert ask(machine)["table"] == "saved"
    again = ask(machine)
    assert (again["table"], again["bad"]) == ("loaded", 0)
    assert machine.calls == ["ioctl 1", "ioctl 1"]


def test_snp_key_when_bound_to_something_else_does_not_open_it(machine: Any) -> None:
    ask(machine)
    assert ask(machine, vmpl=1)["table"] == "TABLE"


def test_snp_key_when_the_host_is_busy_is_asked_for_again(machine: Any) -> None:
    machine.go_wrong("ioctl errno=5 vmm=2", "ioctl errno=11")
    assert ask(machine)["table"] == "saved"
    assert len(machine.calls) == 3


@pytest.mark.parametrize(
    ("line", "reason", "words"),
    [
        ("ioctl errno=5 fw=0x16", "SEV_GUEST_FIRMWARE_ERROR", "INVALID_PARAM"),
        ("ioctl status=0x16", "SEV_GUEST_FIRMWARE_ERROR", "status 0x16"),
        ("ioctl errno=5 vmm=9", "SEV_GUEST_HOST_ERROR", "error 9"),
        ("ioctl errno=25", "SEV_GUEST_KEY_DISABLED", "VMPCK"),
        ("ioctl errno=110", "SEV_GUEST_THROTTLED", "60 s"),
    ],
)
def test_snp_key_when_it_is_refused_says_why(machine: Any, line: str, reason: str, words: str) -> None:
    machine.go_wrong(line)
    outcome = ask(machine)
    assert outcome["reason"] == reason
    assert words in outcome["message"]


def test_snp_key_when_the_host_stays_busy_gives_up(machine: Any) -> None:
    machine.go_wrong(*["ioctl errno=5 vmm=2"] * 7)
    outcome = ask(machine)
    assert (outcome["reason"], outcome["retry_after"]) == ("SEV_GUEST_BUSY", 2.0)
    assert len(machine.calls) == 7
