"""The directory source: what files hold decides."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from endorsement_support import vectors
from endorsement_support.clock import FakeClock
from endorsement_support.pki import START, YEAR, Hierarchy
from pagegate.endorsements import directory as directory_module
from pagegate.endorsements.certificate import parse_certificate
from pagegate.endorsements.content import split_certificates
from pagegate.endorsements.directory import DirectorySource, collect
from pagegate.errors import EndorsementError
from pagegate.evidence.model import KeyKind


@pytest.mark.parametrize(
    "name", ["milan-v2-automata", "milan-v5-gcp-x25519", "genoa-v3-veraison", "turin-v5-oak", "milan-v3-vlek-trustee"]
)
def test_find_when_the_whole_vector_tree_is_given_picks_the_right_ones(name: str, clock: FakeClock) -> None:
    request = vectors.request(name)
    found = DirectorySource(vectors.sev_snp(), clock=clock).find(request)
    assert found.leaf is not None
    assert parse_certificate(found.leaf).public_key == parse_certificate(vectors.leaf_der(name)).public_key
    assert sorted(found.chain) == sorted(split_certificates(vectors.chain_pem(request.product, request.kind)))


def test_find_when_file_names_mean_nothing_still_finds(tmp_path: Path, milan: Hierarchy, clock: FakeClock) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_bytes(milan.leaf())
    (tmp_path / "b").write_bytes(milan.chain_pem())
    (tmp_path / "c.jpg").write_bytes(milan.crl())
    (tmp_path / "notes.md").write_text("these are the certificates")
    found = DirectorySource(tmp_path, clock=clock).find(milan.request())
    assert found.leaf is not None
    assert len(found.chain) == 2
    assert (found.crl, found.fetched_at) == (milan.crl(), START)
    assert found.problems == ()


def test_find_when_the_leaf_is_for_another_tcb_names_what_is_there(
    tmp_path: Path, milan: Hierarchy, clock: FakeClock
) -> None:
    (tmp_path / "leaf").write_bytes(milan.leaf())
    asked = milan.request(tcb=bytes.fromhex("04000000000018dc"))
    found = DirectorySource(tmp_path, clock=clock).find(asked)
    assert found.leaf is None
    assert "for TCB bl=4 tee=0 snp=24 ucode=219" in found.problems[0]


def test_find_when_the_directory_is_empty_gives_nothing(tmp_path: Path, milan: Hierarchy) -> None:
    found = DirectorySource(tmp_path).find(milan.request())
    assert (found.leaf, found.chain, found.crl) == (None, (), None)


def test_find_when_the_chip_is_masked_says_so(tmp_path: Path, milan: Hierarchy) -> None:
    found = DirectorySource(tmp_path).find(milan.request(chip=bytes(64)))
    assert "ENDORSEMENT_CHIP_MASKED" in found.problems[0]


def test_find_when_a_file_comes_or_changes_sees_it(tmp_path: Path, milan: Hierarchy, clock: FakeClock) -> None:
    source = DirectorySource(tmp_path, clock=clock)
    assert source.find(milan.request()).leaf is None
    first, second = milan.leaf(), milan.leaf(not_before=START + timedelta(days=1))
    (tmp_path / "leaf").write_bytes(first)
    clock.advance(1)
    assert source.find(milan.request()).leaf == first
    (tmp_path / "leaf").write_bytes(second)
    os.utime(tmp_path / "leaf", ns=(1, 1))
    clock.advance(1)
    assert source.find(milan.request()).leaf == second


def test_find_when_several_leaves_fit_takes_the_newest_in_force(
    tmp_path: Path, milan: Hierarchy, clock: FakeClock
) -> None:
    expired = milan.leaf(not_before=START + timedelta(days=2), not_after=START + timedelta(days=3))
    older, newer = milan.leaf(), milan.leaf(not_before=START + timedelta(days=1))
    for number, body in enumerate((newer, expired, older)):
        (tmp_path / str(number)).write_bytes(body)
    assert DirectorySource(tmp_path, clock=clock).find(milan.request()).leaf == newer


def test_find_when_crl_names_say_the_key_kind_keeps_them_apart(
    tmp_path: Path, milan: Hierarchy, clock: FakeClock
) -> None:
    vcek, vlek = milan.crl(), milan.crl(this_update=START + timedelta(days=1), next_update=START + 4 * YEAR)
    (tmp_path / "vcek-crl.der").write_bytes(vcek)
    (tmp_path / "vlek-crl.der").write_bytes(vlek)
    source = DirectorySource(tmp_path, clock=clock)
    assert source.find(milan.request()).crl == vcek
    assert source.find(milan.request(kind=KeyKind.VLEK)).crl == vlek


def test_find_when_not_needed_still_gives_the_leaf_it_has(tmp_path: Path, milan: Hierarchy) -> None:
    (tmp_path / "leaf").write_bytes(milan.leaf())
    assert DirectorySource(tmp_path).find(replace(milan.request(), need_leaf=False)).leaf is not None


def test_find_when_a_file_cannot_be_read_goes_on(tmp_path: Path, milan: Hierarchy) -> None:
    (tmp_path / "leaf").write_bytes(milan.leaf())
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert DirectorySource(tmp_path).find(milan.request()).leaf is not None


def test_find_when_there_are_too_many_files_says_so(
    tmp_path: Path, milan: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "MAX_FILES", 3)
    for number in range(4):
        (tmp_path / str(number)).touch()
    with pytest.raises(EndorsementError, match="more than 3 files"):
        DirectorySource(tmp_path).find(milan.request())


def test_collect_when_an_ask_has_no_ark_says_so(milan: Hierarchy) -> None:
    collected = collect([("ask.der", milan.intermediate())])
    assert collected.contents == ()
    assert collected.skipped == ("SEV-Milan: its issuer ARK-Milan is not there",)


def test_collect_when_an_ask_is_not_the_arks_says_so(milan: Hierarchy) -> None:
    collected = collect([("ask", Hierarchy("Milan").intermediate()), ("ark", milan.ark)])
    assert "signature is not of 'ARK-Milan'" in collected.skipped[0]


def test_collect_when_a_file_holds_no_certificate_names_it() -> None:
    collected = collect(
        [("readme", b"hello"), ("key.pem", b"-----BEGIN EC PARAMETERS-----\nAAAA\n-----END EC PARAMETERS-----")]
    )
    assert collected.skipped == ("readme: neither a certificate nor a revocation list, DER or PEM",)
