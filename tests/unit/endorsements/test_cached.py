"""The caching source: single flight, freshness, negative memory, offline, what is kept out."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from endorsement_support import vectors
from endorsement_support.clock import FakeClock
from endorsement_support.kds import FakeKds, Reply
from endorsement_support.pki import Hierarchy
from endorsement_support.types import MakeSource
from pagegate.endorsements import CachedSource, chain_part, crl_part, leaf_part
from pagegate.endorsements.clock import SystemClock
from pagegate.endorsements.content import split_certificates
from pagegate.errors import EndorsementError
from pagegate.evidence.model import EndorsementRequest, Endorsements, KeyKind

VCEK = KeyKind.VCEK
CHAIN = chain_part("Milan", VCEK)
CRL = crl_part("Milan", VCEK)
DAY = 86400.0


@pytest.fixture
def stocked(kds: FakeKds, milan: Hierarchy, clock: FakeClock) -> FakeKds:
    """KDS with leaf, chain and CRL of the made-up Milan."""
    kds.add_leaf(milan.leaf())
    kds.add(CHAIN, milan.chain_pem())
    kds.add(CRL, milan.crl(this_update=at(clock, -1), next_update=at(clock, 60)))
    return kds


def at(clock: FakeClock, days: float) -> datetime:
    return datetime.fromtimestamp(clock.now(), UTC).replace(microsecond=0) + timedelta(days=days)


def in_threads(count: int, call: Callable[[], Any]) -> list[Any]:
    """Runs `call` in threads that start together; returns results or exceptions."""
    results: list[Any] = []
    barrier = threading.Barrier(count)

    def run() -> None:
        barrier.wait()
        try:
            results.append(call())
        except EndorsementError as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("name", ["milan-v3-oak-cb", "genoa-v5-oak", "turin-v5-oak"])
def test_find_when_kds_has_the_real_certificates_gives_them(kds: FakeKds, source: MakeSource, name: str) -> None:
    request = vectors.request(name)
    kds.add_leaf(vectors.leaf_der(name))
    kds.add(chain_part(request.product, VCEK), vectors.chain_pem(request.product))
    found = source().find(request)
    assert found.leaf == vectors.leaf_der(name)
    assert list(found.chain) == split_certificates(vectors.chain_pem(request.product))
    assert found.crl is None
    assert "HTTP 404" in found.problems[0]
    assert found.source == f"kds {kds.url}"


def test_find_when_all_is_there_gives_all(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    found = source().find(milan.request())
    assert found.leaf is not None
    assert found.crl is not None
    assert found.problems == ()
    assert found.fetched_at == datetime.fromtimestamp(clock.now(), UTC)


def test_find_when_asked_again_does_not_touch_the_network(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy
) -> None:
    first = source().find(milan.request())
    asked = len(stocked.requests)
    assert source().find(milan.request()) == first
    assert len(stocked.requests) == asked == 3


def test_find_when_the_leaf_came_with_the_evidence_spends_no_turn_on_it(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy
) -> None:
    found = source().find(replace(milan.request(), need_leaf=False))
    assert (found.leaf, len(found.chain)) == (None, 2)
    assert stocked.count(leaf_part(milan.request())) == 0


def test_find_when_a_vlek_is_brought_gets_its_own_chain_and_crl(
    kds: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    kds.add(chain_part("Milan", KeyKind.VLEK), milan.chain_pem(KeyKind.VLEK))
    kds.add(crl_part("Milan", KeyKind.VLEK), milan.crl(next_update=at(clock, 60)))
    found = source().find(replace(milan.request(kind=KeyKind.VLEK), need_leaf=False))
    assert found.chain[0] == milan.intermediate(KeyKind.VLEK)
    assert found.crl is not None
    assert all(path.startswith("/vlek/") for path in kds.requests)


@pytest.mark.parametrize(
    ("request_of", "reason"),
    [
        (lambda m: m.request(kind=KeyKind.VLEK), "ENDORSEMENT_VLEK_NOT_SERVED"),
        (lambda m: m.request(chip=bytes(64)), "ENDORSEMENT_CHIP_MASKED"),
    ],
)
@pytest.mark.parametrize("offline", [False, True])
def test_find_when_kds_cannot_have_the_leaf_says_where_to_get_it(
    kds: FakeKds,
    source: MakeSource,
    milan: Hierarchy,
    request_of: Callable[[Hierarchy], EndorsementRequest],
    reason: str,
    offline: bool,
) -> None:
    with pytest.raises(EndorsementError, match="certificate table") as caught:
        source(offline=offline).find(request_of(milan))
    assert caught.value.reason == reason
    assert kds.requests == []


def test_find_when_many_threads_ask_fetches_once(stocked: FakeKds, source: MakeSource, milan: Hierarchy) -> None:
    stocked.delay = 0.1
    one = source()
    results = in_threads(12, lambda: one.find(milan.request()))
    assert all(result == results[0] for result in results)
    assert isinstance(results[0], Endorsements)
    assert len(stocked.requests) == 3


def test_find_when_sources_share_the_file_fetch_once(stocked: FakeKds, source: MakeSource, milan: Hierarchy) -> None:
    stocked.delay = 0.1
    sources = iter([source(clock=SystemClock()) for _ in range(6)])
    lock = threading.Lock()

    def call() -> Endorsements:
        with lock:
            one = next(sources)
        return one.find(milan.request())

    results = in_threads(6, call)
    assert all(result == results[0] for result in results)
    assert len(stocked.requests) == 3


def test_find_when_a_fetch_fails_all_who_wait_hear_of_it(kds: FakeKds, source: MakeSource, milan: Hierarchy) -> None:
    kds.delay = 0.1
    one = source()
    results = in_threads(8, lambda: one.find(milan.request()))
    assert {result.reason for result in results} == {"ENDORSEMENT_NOT_FOUND"}
    assert kds.count(leaf_part(milan.request())) == 1


def test_find_when_not_found_is_remembered_then_asked_again(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    path = next(path for path in stocked.files if "SPL=" in path)
    leaf = stocked.files.pop(path)
    for _ in range(2):
        with pytest.raises(EndorsementError, match="ENDORSEMENT_NOT_FOUND"):
            source().find(milan.request())
    assert stocked.requests.count(path) == 1
    stocked.files[path] = leaf
    clock.advance(599)
    with pytest.raises(EndorsementError, match="remembered for 1 s more") as caught:
        source().find(milan.request())
    assert caught.value.retry_after == pytest.approx(1)
    clock.advance(1)
    assert source().find(milan.request()).leaf == leaf


def test_prewarm_when_the_operator_asks_forgets_the_refusal(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy
) -> None:
    part = leaf_part(milan.request())
    leaf = stocked.files.pop(next(path for path in stocked.files if "SPL=" in path))
    with pytest.raises(EndorsementError, match="ENDORSEMENT_NOT_FOUND"):
        source().find(milan.request())
    stocked.add_leaf(leaf)
    [(_, outcome)] = source().prewarm([part])
    assert not isinstance(outcome, EndorsementError)


def test_prewarm_when_some_fail_goes_on(stocked: FakeKds, source: MakeSource, milan: Hierarchy) -> None:
    missing = leaf_part(milan.request(chip=bytes([9] * 64)))
    outcomes = list(source().prewarm([missing, CHAIN, CRL]))
    assert [isinstance(outcome, EndorsementError) for _, outcome in outcomes] == [True, False, False]


def test_find_when_the_crl_ages_serves_it_and_renews_behind(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    one = source()
    old = one.find(milan.request()).crl
    new = milan.crl(this_update=at(clock, 1), next_update=at(clock, 90))
    stocked.add(CRL, new)
    clock.advance(2 * DAY)
    assert one.find(milan.request()).crl == old
    one.join(10)
    assert one.find(milan.request()).crl == new
    assert stocked.count(CRL) == 2


def test_find_when_renewal_fails_serves_the_old_and_does_not_hammer(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    one = source()
    old = one.find(milan.request()).crl
    stocked.fail(CRL, Reply(403))
    clock.advance(2 * DAY)
    for _ in range(3):
        assert one.find(milan.request()).crl == old
        one.join(10)
    assert stocked.count(CRL) == 2
    clock.advance(60)
    one.find(milan.request())
    one.join(10)
    assert stocked.count(CRL) == 3


def test_find_when_the_crl_is_past_max_stale_waits_for_the_new(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    one = source()
    one.find(milan.request())
    new = milan.crl(this_update=at(clock, 1), next_update=at(clock, 90))
    stocked.add(CRL, new)
    clock.advance(9 * DAY)
    assert one.find(milan.request()).crl == new


def test_find_when_the_crl_has_expired_waits_for_the_new(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    stocked.add(CRL, milan.crl(next_update=at(clock, 0.5)))
    one = source()
    one.find(milan.request())
    new = milan.crl(next_update=at(clock, 90))
    stocked.add(CRL, new)
    clock.advance(0.6 * DAY)
    assert one.find(milan.request()).crl == new


def test_find_when_the_crl_expired_and_kds_is_down_gives_the_old_with_the_problem(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    one = source()
    old = one.find(milan.request())
    stocked.always = Reply(500)
    clock.advance(61 * DAY)
    found = one.find(milan.request())
    assert (found.crl, found.fetched_at) == (old.crl, old.fetched_at)
    assert "serving the old copy" in "".join(found.problems)


def test_find_when_kds_is_down_waits_for_a_crl_only_once_a_minute(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    stocked.files.pop("/vcek/v1/Milan/crl")
    stocked.fail(CRL, *[Reply(500)] * 1000)
    one = source()
    one.find(milan.request())
    waited = clock.monotonic()
    assert waited <= 15
    one.find(milan.request())
    assert clock.monotonic() == waited


def test_find_when_a_leaf_is_old_but_in_force_never_renews_it(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    one = source()
    one.find(milan.request())
    clock.advance(1000 * DAY)
    one.find(milan.request())
    assert stocked.count(leaf_part(milan.request())) == 1


def test_find_when_a_leaf_has_expired_gets_the_new_one(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    stocked.add_leaf(milan.leaf(not_after=at(clock, 10)))
    one = source()
    one.find(milan.request())
    new = milan.leaf(not_after=at(clock, 1000))
    stocked.add_leaf(new)
    clock.advance(11 * DAY)
    assert one.find(milan.request()).leaf == new


def test_find_when_the_clock_was_set_back_renews(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    source().find(milan.request())
    earlier = FakeClock(clock.now() - 3 * DAY)
    one = source(clock=earlier)
    one.find(milan.request())
    one.join(10)
    assert stocked.count(CRL) == 2


def test_find_when_offline_serves_any_age_and_never_asks(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, clock: FakeClock
) -> None:
    online = source().find(milan.request())
    asked = len(stocked.requests)
    clock.advance(3000 * DAY)
    assert source(offline=True).find(milan.request()) == online
    assert len(stocked.requests) == asked


def test_find_when_offline_and_not_cached_says_what_to_do(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy
) -> None:
    with pytest.raises(EndorsementError, match="pagegate endorsements import") as caught:
        source(offline=True).find(milan.request())
    assert caught.value.reason == "ENDORSEMENT_OFFLINE"
    assert stocked.requests == []


def test_find_when_memory_is_the_cache_works_the_same(stocked: FakeKds, source: MakeSource, milan: Hierarchy) -> None:
    one = source(cache_path=None)
    assert one.find(milan.request()) == one.find(milan.request())
    assert len(stocked.requests) == 3


def assert_nothing_cached(one: CachedSource, request: EndorsementRequest) -> None:
    assert one.cache.get(leaf_part(request), 0) is None


def test_find_when_kds_gives_a_forged_leaf_keeps_it_out(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, turin: Hierarchy
) -> None:
    stocked.add_leaf(milan.leaf(signer=turin.sub_key))
    one = source()
    with pytest.raises(EndorsementError, match="signature is not of 'SEV-Milan'"):
        one.find(milan.request())
    assert_nothing_cached(one, milan.request())


def test_find_when_kds_gives_another_tcbs_leaf_keeps_it_out(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy
) -> None:
    asked = milan.request(tcb=bytes.fromhex("04000000000018dc"))
    stocked.add(leaf_part(asked), milan.leaf())
    one = source()
    with pytest.raises(EndorsementError, match="ENDORSEMENT_CERTIFICATE_MISMATCH"):
        one.find(asked)
    assert_nothing_cached(one, asked)


def test_find_when_the_mirror_has_another_root_keeps_the_chain_out(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy
) -> None:
    one = source(roots=frozenset({"ab" * 32}))
    with pytest.raises(EndorsementError, match="ENDORSEMENT_ROOT_UNKNOWN"):
        one.find(milan.request())
    assert one.cache.stored() == []


def test_find_when_the_root_is_allowed_takes_the_chain(stocked: FakeKds, source: MakeSource, milan: Hierarchy) -> None:
    one = source(roots=frozenset({hashlib.sha256(milan.ark).hexdigest()}))
    assert one.find(milan.request()).leaf is not None


def test_find_when_the_crl_is_forged_leaves_it_out_and_says_so(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy, turin: Hierarchy, clock: FakeClock
) -> None:
    stocked.add(CRL, milan.crl(signer=turin.ark_key, next_update=at(clock, 60)))
    one = source()
    found = one.find(milan.request())
    assert found.crl is None
    assert "a CRL whose signature is not of 'ARK-Milan'" in found.problems[0]
    assert one.cache.get(CRL, 0) is None


def test_find_when_another_process_fetches_too_long_is_busy(
    stocked: FakeKds, source: MakeSource, milan: Hierarchy
) -> None:
    holder, waiter = source(), source()
    handle = holder.cache.try_lock(CHAIN)
    assert handle is not None
    with pytest.raises(EndorsementError, match="another process") as caught:
        waiter.find(milan.request())
    assert caught.value.reason == "ENDORSEMENT_SERVICE_BUSY"
    holder.cache.unlock(handle)
