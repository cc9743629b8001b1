"""The cache file: what it keeps, what it drops, what survives."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from endorsement_support import vectors
from endorsement_support.pki import Hierarchy
from pagegate.endorsements import chain_part, leaf_part
from pagegate.endorsements.cache import Cache
from pagegate.endorsements.content import Content, parse_chain, parse_crl, parse_leaf, split_certificates
from pagegate.endorsements.pace import Turns
from pagegate.endorsements.status import endorsement_status
from pagegate.errors import EndorsementError
from pagegate.evidence.model import KeyKind

NOW = 1_800_000_000.0
LEAF = parse_leaf(vectors.leaf_der("milan-v3-oak-cb"))
MAX = 1024 * 1024


def chain(product: str = "Milan", kind: str = "vcek") -> Content:
    return parse_chain(split_certificates(vectors.chain_pem(product, kind)))


def edit(path: Path, statement: str, *values: object) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(statement, values)
    db.close()


def test_get_when_put_gives_it_back_with_its_dates(cache: Cache) -> None:
    cache.put(LEAF, source="kds", now=NOW)
    stored = cache.get(LEAF.part, NOW)
    assert stored is not None
    assert (stored.body, stored.source, stored.fetched_at) == (LEAF.body, "kds", NOW)
    assert stored.expires_at == LEAF.expires_at.timestamp()


def test_get_when_never_put_gives_none(cache: Cache) -> None:
    assert cache.get(LEAF.part, NOW) is None


def test_get_when_reopened_has_it_still(cache: Cache) -> None:
    cache.put(LEAF, source="kds", now=NOW)
    cache.close()
    again = Cache(cache.path, max_bytes=MAX)
    assert again.get(LEAF.part, NOW) is not None
    again.close()


def test_get_when_chains_of_both_key_kinds_are_there_never_mixes_them(cache: Cache) -> None:
    for product in ("Milan", "Genoa", "Turin"):
        for kind in KeyKind:
            cache.put(chain(product, kind), source="t", now=NOW)
    for product in ("Milan", "Genoa", "Turin"):
        for kind in KeyKind:
            stored = cache.get(chain_part(product, kind), NOW)
            assert stored is not None
            assert split_certificates(stored.body) == split_certificates(vectors.chain_pem(product, kind))


def test_get_when_a_bit_of_the_body_flipped_drops_it(cache: Cache) -> None:
    cache.put(LEAF, source="kds", now=NOW)
    edit(cache.path, "UPDATE part SET body = ?", LEAF.body[:-1] + bytes([LEAF.body[-1] ^ 1]))  # type: ignore[arg-type]
    assert cache.get(LEAF.part, NOW) is None
    assert cache.stored() == []


def test_get_when_a_row_was_moved_to_another_key_drops_it(cache: Cache) -> None:
    other = leaf_part(vectors.request("milan-v3-azure-ms"))
    cache.put(LEAF, source="kds", now=NOW)
    edit(cache.path, "UPDATE part SET key = ?, hwid = ?, tcb = ?", other.key, other.hwid, other.tcb)  # type: ignore[arg-type]
    assert cache.get(other, NOW) is None


@pytest.mark.parametrize("column", ["body", "hwid", "kind", "made_at"])
def test_get_when_a_column_has_the_wrong_type_drops_it(cache: Cache, column: str) -> None:
    cache.put(LEAF, source="kds", now=NOW)
    edit(cache.path, f"UPDATE part SET {column} = 'x'")  # type: ignore[arg-type]
    assert cache.get(LEAF.part, NOW) is None


@pytest.mark.parametrize("junk", [b"this is no database" * 100, b"SQLite format 3\0" + bytes(4000)])
def test_open_when_the_file_is_no_database_sets_it_aside(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "e.db"
    path.write_bytes(junk)
    cache = Cache(path, max_bytes=MAX)
    cache.put(LEAF, source="kds", now=NOW)
    cache.close()
    assert (tmp_path / "e.db.damaged").read_bytes() == junk


def test_open_when_pages_are_overwritten_sets_it_aside(tmp_path: Path, milan: Hierarchy) -> None:
    path = tmp_path / "e.db"
    cache = Cache(path, max_bytes=MAX)
    for number in range(40):
        cache.put(parse_leaf(milan.leaf(hwid=bytes([number + 1] * 64))), source="t", now=NOW)
    cache.close()
    data = bytearray(path.read_bytes())
    data[4096 * 3 :] = os.urandom(len(data) - 4096 * 3)
    path.write_bytes(data)
    again = Cache(path, max_bytes=MAX)
    assert again.stored() == []
    again.close()
    assert (tmp_path / "e.db.damaged").exists()


def test_open_when_made_by_a_later_version_refuses_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    Cache(path, max_bytes=MAX).close()
    edit(path, "PRAGMA user_version = 99")
    with pytest.raises(EndorsementError, match="format 99, this one has 1") as caught:
        Cache(path, max_bytes=MAX)
    assert caught.value.reason == "ENDORSEMENT_CACHE_UNUSABLE"
    assert not (tmp_path / "e.db.damaged").exists()


def test_open_when_the_place_is_a_directory_refuses(tmp_path: Path) -> None:
    with pytest.raises(EndorsementError, match="ENDORSEMENT_CACHE_UNUSABLE"):
        Cache(tmp_path, max_bytes=MAX)


def test_open_when_the_parent_is_a_file_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EndorsementError, match="ENDORSEMENT_CACHE_UNUSABLE"):
        Cache(tmp_path / "file" / "e.db", max_bytes=MAX)


def test_open_when_new_is_for_its_owner_only(cache: Cache) -> None:
    assert cache.path is not None
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o600


def test_use_when_closed_is_a_typed_error(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "e.db", max_bytes=MAX)
    cache.close()
    with pytest.raises(EndorsementError, match="ENDORSEMENT_CACHE_UNUSABLE"):
        cache.put(LEAF, source="t", now=NOW)


def test_put_when_over_the_bound_drops_the_least_used_leaves_and_keeps_chains(tmp_path: Path, milan: Hierarchy) -> None:
    leaves = [parse_leaf(milan.leaf(hwid=bytes([n] * 64))) for n in (1, 2, 3)]
    root = chain()
    cache = Cache(tmp_path / "e.db", max_bytes=len(root.body) + 2 * len(leaves[0].body) + 20)
    cache.put(root, source="t", now=NOW - 10**6)
    cache.put(leaves[0], source="t", now=NOW)
    cache.put(leaves[1], source="t", now=NOW + 1)
    cache.get(leaves[0].part, NOW + 7200)
    cache.put(leaves[2], source="t", now=NOW + 7201)
    kept = {stored.part for stored in cache.stored()}
    cache.close()
    assert kept == {root.part, leaves[0].part, leaves[2].part}


def test_oversize_when_some_go_anyway_counts_them_out(cache: Cache, milan: Hierarchy) -> None:
    leaves = [parse_leaf(milan.leaf(hwid=bytes([n] * 64))) for n in (1, 2)]
    for number, leaf in enumerate(leaves):
        cache.put(leaf, source="t", now=NOW + number)
    assert cache.oversize(len(leaves[1].body), without=[leaves[0].part]) == []
    assert cache.oversize(len(leaves[1].body) + 10) == [leaves[0].part]


def test_absent_when_remembered_says_reason_and_how_long(cache: Cache) -> None:
    cache.put_absent(LEAF.part, EndorsementError("ENDORSEMENT_NOT_FOUND", "no such chip"), now=NOW, seconds=600)
    error = cache.absent(LEAF.part, NOW + 100)
    assert error is not None
    assert (error.reason, error.retry_after) == ("ENDORSEMENT_NOT_FOUND", 500)
    assert "no such chip" in error.message


@pytest.mark.parametrize("later", [600, 10_000, -1])
def test_absent_when_over_or_the_clock_went_back_is_forgotten(cache: Cache, later: float) -> None:
    cache.put_absent(LEAF.part, EndorsementError("ENDORSEMENT_NOT_FOUND", "x"), now=NOW, seconds=600)
    assert cache.absent(LEAF.part, NOW + later) is None


def test_absent_when_the_part_comes_is_forgotten(cache: Cache) -> None:
    cache.put_absent(LEAF.part, EndorsementError("ENDORSEMENT_NOT_FOUND", "x"), now=NOW, seconds=600)
    cache.put(LEAF, source="t", now=NOW)
    assert cache.absent(LEAF.part, NOW) is None


def test_turns_when_two_caches_share_the_file_share_the_queue(cache: Cache) -> None:
    other = Cache(cache.path, max_bytes=MAX)
    assert cache.take_turn("q", now=NOW, interval=10, latest=NOW + 100) == NOW
    assert other.take_turn("q", now=NOW, interval=10, latest=NOW + 100) == NOW + 10
    assert cache.take_turn("q", now=NOW, interval=10, latest=NOW + 15) is None
    assert cache.take_turn("q", now=NOW, interval=10, latest=NOW + 100) == NOW + 20
    other.close()


def test_hold_when_a_shorter_one_follows_keeps_the_longer() -> None:
    assert Turns().held(NOW + 100).held(NOW + 50).is_held(NOW + 99)


def test_lock_when_taken_is_refused_to_another_cache_until_freed(cache: Cache) -> None:
    other = Cache(cache.path, max_bytes=MAX)
    first = cache.try_lock(LEAF.part)
    assert first is not None
    assert other.try_lock(LEAF.part) is None
    free = other.try_lock(chain().part)
    assert free is not None
    other.unlock(free)
    cache.unlock(first)
    second = other.try_lock(LEAF.part)
    assert second is not None
    other.unlock(second)
    other.close()


def test_lock_when_in_memory_is_always_had() -> None:
    cache = Cache(None, max_bytes=MAX)
    handle = cache.try_lock(LEAF.part)
    assert handle is not None
    cache.unlock(handle)
    cache.close()


def test_put_when_many_threads_write_keeps_all(cache: Cache, milan: Hierarchy) -> None:
    leaves = [parse_leaf(milan.leaf(hwid=bytes([n] * 64))) for n in range(1, 21)]
    threads = [threading.Thread(target=cache.put, args=(leaf,), kwargs={"source": "t", "now": NOW}) for leaf in leaves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache.stored()) == 20


def test_status_when_parts_are_cached_gives_ages_and_expiries(cache: Cache, milan: Hierarchy) -> None:
    crl = parse_crl(milan.crl(), KeyKind.VCEK)
    cache.put(LEAF, source="t", now=NOW)
    cache.put(chain(), source="t", now=NOW)
    cache.put(crl, source="t", now=NOW, fetched_at=NOW - 5000)
    status = endorsement_status(cache, NOW + 1000)
    assert status.oldest_crl_age == 6000
    assert status.next_crl_expiry == crl.expires_at.timestamp() - NOW - 1000
    assert status.next_leaf_expiry == LEAF.expires_at.timestamp() - NOW - 1000
    assert status.next_chain_expiry == chain().expires_at.timestamp() - NOW - 1000
    leaf = next(part for part in status.parts if part.kind.value == "leaf")
    assert (leaf.tcb, leaf.chip_id) == ("bl=4 tee=0 snp=24 ucode=219", LEAF.part.hwid.hex())


def test_status_when_empty_has_no_ages(cache: Cache) -> None:
    status = endorsement_status(cache, NOW)
    assert (status.parts, status.oldest_crl_age, status.next_leaf_expiry) == ((), None, None)
