"""New endorsements of this machine: found, held against its report, swapped in whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from endorsement_support.kds import FakeKds, Reply
from endorsement_support.simulated import serve_root
from endorsement_support.types import MakeSettings
from pagegate.endorsements import Cache, EndorsementSettings, crl_part, leaf_part, request_from_report
from pagegate.endorsements.content import parse_leaf
from pagegate.endorsements.rotation import Rotation, plan_rotation
from pagegate.errors import EndorsementError
from pagegate.evidence.model import Evidence, KeyKind
from pagegate.evidence.snp.anchors import simulated_anchor
from pagegate.platforms.simulated import SimulatedPlatform, SimulatedRoot, measurement_of
from pagegate.platforms.simulated.products import Tcb

RAISED = Tcb(5, 0, 25, 220)
DATA = bytes(64)


class Machine:
    """A simulated machine: `before` is its evidence at the old TCB, `after` that of the raised one. As after a real
    update, the certificate table of `after` still holds the old VCEK."""

    def __init__(self, root: SimulatedRoot) -> None:
        name = f"rotating-{time.time_ns()}"
        old = root.chip(name)
        platform = SimulatedPlatform(old, measurement=measurement_of(b"rotation"), follow=root.as_it_runs)
        self.before = platform.attest(DATA)
        root.update_firmware(name, RAISED)
        self.complete = platform.attest(DATA)
        self.after = replace(self.complete, certificates=self.before.certificates)
        self.new = root.chip(name)
        self.old_leaf, self.new_leaf = old.certificates[0], self.new.certificates[0]
        self.root = root


@pytest.fixture
def machine(simulated_root: SimulatedRoot, kds: FakeKds) -> Machine:
    made = Machine(simulated_root)
    serve_root(kds, simulated_root, made.new)
    return made


@pytest.fixture
def plan(settings: MakeSettings, cache: Cache, machine: Machine) -> Callable[..., Rotation]:
    def make(evidence: Evidence | None = None, **kw: Any) -> Rotation:
        chosen: EndorsementSettings = settings(leaf_interval=0.0, **kw)
        anchors = [simulated_anchor("Milan", machine.root.ark_der)]
        chosen = replace(chosen, roots=frozenset({anchors[0].ark_digest.hex()}))
        return plan_rotation(evidence or machine.after, chosen, cache, anchors=anchors, allow_simulated=True)

    return make


def leaves(cache: Cache) -> list[bytes]:
    return [stored.body for stored in cache.stored() if stored.part.kind.value == "leaf"]


def hold_old(cache: Cache, machine: Machine) -> None:
    cache.put(parse_leaf(machine.old_leaf), source="test", now=time.time())


def test_rotation_when_tcb_was_raised_then_fetches_the_new_vcek_and_drops_the_old(
    plan, cache: Cache, machine: Machine, kds: FakeKds
) -> None:
    hold_old(cache, machine)
    rotation = plan()
    assert (rotation.leaf.body, rotation.hindrances, rotation.changes) == (machine.new_leaf, (), True)
    assert rotation.source == f"kds {kds.url}"
    rotation.put_in_force(cache, time.time())
    assert leaves(cache) == [machine.new_leaf]
    assert {stored.part.kind.value for stored in cache.stored()} == {"leaf", "chain", "crl"}


def test_rotation_when_only_planned_then_the_cache_is_as_it_was(plan, cache: Cache, machine: Machine) -> None:
    hold_old(cache, machine)
    plan()
    assert leaves(cache) == [machine.old_leaf]
    assert len(cache.stored()) == 1


def test_rotation_when_done_again_then_changes_nothing_and_spends_no_leaf_request(
    plan, cache: Cache, machine: Machine, kds: FakeKds
) -> None:
    plan().put_in_force(cache, time.time())
    again = plan()
    part = leaf_part(request_from_report(machine.after.report))
    assert (again.changes, kds.count(part), kds.count(crl_part("Milan", KeyKind.VCEK))) == (False, 1, 2)


def test_rotation_when_kds_does_not_have_it_then_says_so_and_keeps_the_old(
    plan, cache: Cache, machine: Machine, kds: FakeKds
) -> None:
    hold_old(cache, machine)
    kds.fail(leaf_part(request_from_report(machine.after.report)), Reply(404, b""))
    with pytest.raises(EndorsementError, match="HTTP 404") as caught:
        plan()
    assert caught.value.reason == "ENDORSEMENT_NOT_FOUND"
    assert leaves(cache) == [machine.old_leaf]


def test_rotation_when_offline_and_the_evidence_brings_it_then_takes_it_from_there(
    plan, cache: Cache, machine: Machine, kds: FakeKds
) -> None:
    rotation = plan(machine.complete, offline=True)
    assert (rotation.leaf.body, rotation.source, kds.requests) == (machine.new_leaf, "evidence", [])
    rotation.put_in_force(cache, time.time())
    assert leaves(cache) == [machine.new_leaf]


def test_rotation_when_offline_and_nobody_has_it_then_refused(plan) -> None:
    with pytest.raises(EndorsementError, match="ENDORSEMENT_NOT_FOUND"):
        plan(offline=True)


def test_rotation_when_a_directory_has_it_then_no_leaf_is_fetched(plan, machine: Machine, kds: FakeKds, tmp_path):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "vcek.der").write_bytes(machine.new_leaf)
    assert plan(directory=tmp_path / "given").leaf.body == machine.new_leaf
    assert kds.count(leaf_part(request_from_report(machine.after.report))) == 0


def test_rotation_when_the_certificate_is_of_another_key_then_nothing_enters(
    plan, cache: Cache, machine: Machine, kds: FakeKds
) -> None:
    """Right chip, right TCB, signed by the right ASK: only the report's signature tells."""
    from pagegate.platforms.simulated import certificates
    from pagegate.platforms.simulated.root import _read_certificate, _read_ec_key, _read_rsa_key

    home = machine.root._directory
    stranger = _read_ec_key(next((home / "chips" / machine.new.name).glob("vcek-04*.key")))
    forged = certificates.issue_leaf(
        machine.root.product,
        KeyKind.VCEK,
        stranger.public_key(),
        tcb=RAISED,
        chip_id=machine.new.chip_id,
        csp_id="",
        issuer=_read_certificate(home / "ask.pem"),
        issuer_key=_read_rsa_key(home / "ask.key"),
    )
    from cryptography.hazmat.primitives.serialization import Encoding

    kds.add_leaf(forged.public_bytes(Encoding.DER))
    rotation = plan()
    assert [one.code for one in rotation.hindrances] == ["SNP_SIGNATURE"]
    with pytest.raises(EndorsementError, match="ENDORSEMENT_ROTATION_REFUSED"):
        rotation.put_in_force(cache, time.time())
    assert cache.stored() == []


def test_rotation_when_the_root_is_not_one_we_trust_then_refused(
    settings: MakeSettings, cache: Cache, machine: Machine
) -> None:
    for roots in (frozenset[str](), frozenset({"00" * 32})):
        with pytest.raises(EndorsementError) as caught:
            plan_rotation(machine.complete, settings(leaf_interval=0.0, offline=True, roots=roots), cache, anchors=[])
        assert caught.value.reason == "ENDORSEMENT_ROOT_UNKNOWN"


def test_rotation_when_kds_has_no_crl_then_the_rest_is_swapped_and_it_is_said(
    plan, cache: Cache, machine: Machine, kds: FakeKds
) -> None:
    kds.fail(crl_part("Milan", KeyKind.VCEK), *[Reply(404, b"")] * 3)
    rotation = plan()
    assert any("CRL" in problem for problem in rotation.problems)
    rotation.put_in_force(cache, time.time())
    assert {stored.part.kind.value for stored in cache.stored()} == {"leaf", "chain"}


def test_rotation_when_the_key_is_a_vlek_then_it_comes_from_the_evidence_and_others_stay(
    settings: MakeSettings, cache: Cache, simulated_root: SimulatedRoot, kds: FakeKds
) -> None:
    guests = {
        tcb: SimulatedPlatform(simulated_root.chip("cloud", tcb, kind=KeyKind.VLEK), measurement=bytes(48))
        for tcb in (simulated_root.product.default_tcb, RAISED)
    }
    anchors = [simulated_anchor("Milan", simulated_root.ark_der)]
    roots = frozenset({anchors[0].ark_digest.hex()})
    for guest in guests.values():
        rotation = plan_rotation(
            guest.attest(DATA), settings(roots=roots), cache, anchors=anchors, allow_simulated=True
        )
        assert rotation.hindrances == ()
        rotation.put_in_force(cache, time.time())
    assert len(leaves(cache)) == 2


def test_swap_when_a_reader_looks_then_sees_the_old_or_the_new_and_never_a_mix(
    cache: Cache, plan, machine: Machine, tmp_path
) -> None:
    """Another connection, as another process has it, reads while one swaps back and forth."""
    import threading

    hold_old(cache, machine)
    rotation = plan()
    stop, seen = threading.Event(), set()

    def read() -> None:
        reader = Cache(cache.path, max_bytes=1 << 20)
        while not stop.is_set():
            seen.add(tuple(leaves(reader)))
        reader.close()

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(100):
        rotation.put_in_force(cache, time.time())
        cache.swap((parse_leaf(machine.old_leaf),), (rotation.leaf.part,), source="back", now=time.time())
    stop.set()
    thread.join()
    assert seen <= {(machine.old_leaf,), (machine.new_leaf,)}
