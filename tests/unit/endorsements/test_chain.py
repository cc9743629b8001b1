"""Sources in order, parts merged."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from endorsement_support.clock import FakeClock
from endorsement_support.kds import FakeKds, Reply
from endorsement_support.pki import START, YEAR, Hierarchy
from endorsement_support.types import MakeSettings, MakeSource
from pagegate.endorsements import build_source, chain_part, crl_part, leaf_part
from pagegate.endorsements.chain import SourceChain
from pagegate.endorsements.directory import DirectorySource
from pagegate.errors import EndorsementError
from pagegate.evidence.model import KeyKind


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.fixture
def both(folder: Path, source: MakeSource, clock: FakeClock) -> SourceChain:
    return SourceChain([DirectorySource(folder, clock=clock), source()], clock=clock)


def stock(kds: FakeKds, milan: Hierarchy) -> None:
    kds.add_leaf(milan.leaf())
    kds.add(chain_part("Milan", KeyKind.VCEK), milan.chain_pem())
    kds.add(crl_part("Milan", KeyKind.VCEK), milan.crl())


def test_find_when_the_directory_has_all_never_asks_kds(
    both: SourceChain, folder: Path, kds: FakeKds, milan: Hierarchy
) -> None:
    for name, body in (("leaf", milan.leaf()), ("chain", milan.chain_pem()), ("crl", milan.crl())):
        (folder / name).write_bytes(body)
    found = both.find(milan.request())
    assert (found.crl, found.source) == (milan.crl(), f"directory {folder}")
    assert kds.requests == []


def test_find_when_the_directory_has_the_leaf_only_kds_is_asked_for_the_rest(
    both: SourceChain, folder: Path, kds: FakeKds, milan: Hierarchy
) -> None:
    leaf = milan.leaf()
    (folder / "leaf").write_bytes(leaf)
    stock(kds, milan)
    found = both.find(milan.request())
    assert found.leaf == leaf
    assert len(found.chain) == 2
    assert found.crl is not None
    assert kds.count(leaf_part(milan.request())) == 0
    assert found.source == f"directory {folder}, kds {kds.url}"


def test_find_when_the_directorys_crl_has_expired_takes_kdss(
    both: SourceChain, folder: Path, kds: FakeKds, milan: Hierarchy
) -> None:
    for name, body in (("leaf", milan.leaf()), ("chain", milan.chain_pem())):
        (folder / name).write_bytes(body)
    (folder / "crl").write_bytes(milan.crl(next_update=START + timedelta(days=1)))
    new = milan.crl(this_update=START + YEAR)
    stock(kds, milan)
    kds.add(crl_part("Milan", KeyKind.VCEK), new)
    assert both.find(milan.request()).crl == new


def test_find_when_the_directorys_leaf_has_expired_takes_kdss(
    both: SourceChain, folder: Path, kds: FakeKds, milan: Hierarchy
) -> None:
    (folder / "leaf").write_bytes(milan.leaf(not_after=START + timedelta(days=1)))
    stock(kds, milan)
    assert kds.files[kds.add_leaf(milan.leaf())] == both.find(milan.request()).leaf


def test_find_when_no_source_has_the_leaf_says_what_each_said(
    both: SourceChain, folder: Path, kds: FakeKds, milan: Hierarchy
) -> None:
    (folder / "other").write_bytes(milan.leaf(tcb=bytes.fromhex("0400000000001801")))
    with pytest.raises(
        EndorsementError, match=r"no leaf and no chain: .*HTTP 404.*directory .* has .* ucode=1"
    ) as caught:
        both.find(milan.request())
    assert caught.value.reason == "ENDORSEMENT_NOT_FOUND"


def test_find_when_kds_is_busy_hands_on_when_to_try_again(both: SourceChain, kds: FakeKds, milan: Hierarchy) -> None:
    stock(kds, milan)
    kds.fail(leaf_part(milan.request()), Reply(429, headers={"Retry-After": "400"}))
    with pytest.raises(EndorsementError, match="ENDORSEMENT_SERVICE_BUSY") as caught:
        both.find(milan.request())
    assert caught.value.retry_after == pytest.approx(400)


def test_find_when_there_is_no_source_says_so(milan: Hierarchy) -> None:
    with pytest.raises(EndorsementError, match="no source is configured"):
        SourceChain([]).find(milan.request())


def test_build_when_a_directory_is_set_looks_there_first(
    settings: MakeSettings, folder: Path, milan: Hierarchy, kds: FakeKds
) -> None:
    for name, body in (("leaf", milan.leaf()), ("chain", milan.chain_pem()), ("crl", milan.crl())):
        (folder / name).write_bytes(body)
    source = build_source(settings(directory=folder, offline=True))
    assert source.find(milan.request()).source == f"directory {folder}"
    assert kds.requests == []
