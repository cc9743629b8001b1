"""Genuine evidence of machines that must not be let in: the handshake refuses each, on both sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pagegate.errors import HandshakeError, TransferError
from pagegate.evidence.model import AccessMode, Evidence
from pagegate.platforms.model import Platform
from pagegate.platforms.simulated import SimulatedPlatform, SimulatedRoot, Tcb
from support.appraiser import appraiser_for
from support.handshake import Pair, Showing
from support.platforms import CLIENT, Guests

SIDES = ["client", "server"]
DEBUG, MIGRATION_AGENT = 1 << 19, 1 << 18
MakePair = Callable[..., Pair]


def stale(guests: Guests, label: str) -> Platform:
    """On a chip whose firmware is older than the policy's floor."""
    now = guests.root.product.default_tcb
    return guests(label, tcb=Tcb(now.bootloader, now.tee, now.snp - 1, now.microcode))


def debuggable(guests: Guests, label: str) -> Platform:
    """Whose host may read its memory."""
    return guests(label, policy=0x30000 | DEBUG)


def migratable(guests: Guests, label: str) -> Platform:
    """With a migration agent, which may move its memory elsewhere."""
    agent = bytes(range(32))
    return guests(label, policy=0x30000 | MIGRATION_AGENT, adjust=lambda f: replace(f, report_id_migration_agent=agent))


def masked(guests: Guests, label: str) -> Platform:
    """Whose host hides which chip it is."""
    return guests(label, adjust=lambda f: replace(f, chip_id=bytes(64)))


def forged(guests: Guests, label: str) -> Platform:
    """Whose report was changed after it was signed: it now names a measurement that is believed."""
    stranger = guests("stranger")

    def attest(binding: bytes) -> Evidence:
        evidence = stranger.attest(binding)
        report = evidence.report[:0x90] + guests.measurement(label) + evidence.report[0xC0:]
        return replace(evidence, report=report)

    return Showing(attest)


def unendorsed(guests: Guests, label: str) -> Platform:
    """Which sends no certificates, and nobody else has them."""
    honest = guests(label)
    return Showing(lambda binding: replace(honest.attest(binding), certificates=()))


CASES = {
    "stale TCB": (stale, "SNP_TCB_BELOW_FLOOR"),
    "debug policy": (debuggable, "SNP_GUEST_POLICY"),
    "migrated agent": (migratable, "SNP_GUEST_POLICY"),
    "masked chip": (masked, "SNP_CHIP_ID_MASKED"),
    "forged report": (forged, "SNP_SIGNATURE"),
    "no chain": (unendorsed, "SNP_ENDORSEMENT_MISSING"),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("make", "check"), CASES.values(), ids=CASES)
def test_run_when_the_machine_must_not_be_believed_then_rejected_for_that(
    pair: MakePair, platform_for: Guests, side: str, make: Callable[[Guests, str], Platform], check: str
) -> None:
    with pytest.raises(HandshakeError) as refused:
        pair(**{side: make(platform_for, side)}).run()
    assert refused.value.reason == "EVIDENCE_REJECTED"
    assert check in refused.value.metadata["checks"].split(",")


def test_run_when_simulated_evidence_is_not_allowed_then_rejected(
    pair: MakePair, simulated_root: SimulatedRoot
) -> None:
    strict = appraiser_for(simulated_root, {CLIENT: {}}, allow_simulated=False)
    with pytest.raises(HandshakeError) as refused:
        pair(server_appraiser=strict).run()
    assert refused.value.metadata["checks"] == "SIMULATED_EVIDENCE_REFUSED"


@pytest.mark.parametrize(
    ("granted", "wanted", "allowed"),
    [
        ({"book": "read"}, AccessMode.READ, True),
        ({"book": "read"}, AccessMode.WRITE, False),
        ({"book": "write"}, AccessMode.READ_WRITE, False),
        ({"*": "read-write"}, AccessMode.WRITE, True),
        ({"*": "read-write", "book": "read"}, AccessMode.WRITE, False),
        ({}, AccessMode.READ, False),
    ],
)
def test_run_when_policy_grants_then_no_more_than_that(
    pair: MakePair, simulated_root: SimulatedRoot, granted: dict[str, str], wanted: AccessMode, allowed: bool
) -> None:
    one = pair(server_appraiser=appraiser_for(simulated_root, {CLIENT: granted}), wanted={"book": wanted})
    if allowed:
        assert one.run()[0].regions["book"].mode is wanted
    else:
        with pytest.raises(TransferError) as refused:
            one.run()
        assert refused.value.reason == "REGION_NOT_GRANTED"


def test_run_when_the_root_is_another_then_rejected(
    pair: MakePair, tmp_path_factory: pytest.TempPathFactory, simulated_root: SimulatedRoot
) -> None:
    """A chip of another simulated root: a genuine signature that nobody trusts."""
    other = SimulatedRoot.open_or_create(_other_root(tmp_path_factory), progress=lambda _: None)
    client = SimulatedPlatform(other.chip(CLIENT), measurement=Guests.measurement(CLIENT))
    with pytest.raises(HandshakeError) as refused:
        pair(client=client).run()
    assert refused.value.reason == "EVIDENCE_REJECTED"
    assert "SNP_ROOT_UNTRUSTED" in refused.value.metadata["checks"].split(",")


def _other_root(factory: pytest.TempPathFactory) -> Path:
    base = factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "another-root"
