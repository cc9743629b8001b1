"""The KDS client against a server that behaves, and misbehaves, as KDS does. Real sockets, a clock that jumps."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from endorsement_support import vectors
from endorsement_support.clock import FakeClock
from endorsement_support.kds import FakeKds, Reply, dripping, endless, reset, silent, truncated
from endorsement_support.types import MakeClient
from pagegate.endorsements import Timeouts, chain_part, leaf_part
from pagegate.endorsements.cache import Cache
from pagegate.endorsements.kds import BACKOFF_CAP, retry_after_seconds
from pagegate.errors import EndorsementError
from pagegate.evidence.model import KeyKind

NAME = "milan-v3-oak-cb"
LEAF = leaf_part(vectors.request(NAME))
LEAF_DER = vectors.leaf_der(NAME)
CHAIN = chain_part("Milan", KeyKind.VCEK)


def serve(kds: FakeKds) -> None:
    kds.add(LEAF, LEAF_DER)
    kds.add(CHAIN, vectors.chain_pem("Milan"))


@pytest.mark.parametrize("name", ["milan-v2-automata", "genoa-v5-oak", "turin-v5-azure-ms"])
def test_fetch_when_kds_has_the_vcek_gives_it(kds: FakeKds, client: MakeClient, name: str) -> None:
    part = leaf_part(vectors.request(name))
    kds.add_leaf(vectors.leaf_der(name))
    assert client().fetch(part).body == vectors.leaf_der(name)
    assert kds.count(part) == 1


@pytest.mark.parametrize("kind", list(KeyKind))
def test_fetch_when_asked_for_a_chain_asks_for_that_key_kinds(kds: FakeKds, client: MakeClient, kind: KeyKind) -> None:
    kds.add(chain_part("Turin", kind), vectors.chain_pem("Turin", kind))
    assert client().fetch(chain_part("Turin", kind)).part.key_kind is kind
    assert kds.requests == [f"/{kind}/v1/Turin/cert_chain"]


def test_fetch_when_not_found_says_so_at_once(kds: FakeKds, client: MakeClient, clock: FakeClock) -> None:
    with pytest.raises(EndorsementError, match="check product, chip id and TCB") as caught:
        client().fetch(LEAF)
    assert caught.value.reason == "ENDORSEMENT_NOT_FOUND"
    assert (len(kds.requests), clock.slept) == (1, [])


@pytest.mark.parametrize("status", [400, 401, 403, 407, 418])
def test_fetch_when_refused_does_not_insist(kds: FakeKds, client: MakeClient, status: int) -> None:
    kds.always = Reply(status)
    with pytest.raises(EndorsementError, match=f"HTTP {status}") as caught:
        client().fetch(LEAF)
    assert caught.value.reason == "ENDORSEMENT_SERVICE_REFUSED"
    assert len(kds.requests) == 1


FAULTS = {
    "500": Reply(500),
    "502 with a page": Reply(502, b"<html>bad gateway</html>"),
    "503": Reply(503),
    "408": Reply(408),
    "429 without Retry-After": Reply(429),
    "429 with Retry-After 0": Reply(429, headers={"Retry-After": "0"}),
    "truncated": truncated(LEAF_DER),
    "endless": endless(),
    "silent": silent(1.0),
    "reset": reset(),
    "login page": Reply(200, b"<html>please log in</html>", {"Content-Type": "text/html"}),
    "empty": Reply(200),
    "half a certificate": Reply(200, LEAF_DER[:500]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fetch_when_a_fault_passes_tries_again(kds: FakeKds, client: MakeClient, clock: FakeClock, fault: str) -> None:
    serve(kds)
    kds.fail(LEAF, FAULTS[fault])
    assert client(leaf_interval=0).fetch(LEAF).body == LEAF_DER
    assert kds.count(LEAF) == 2
    assert clock.slept == [0.5]


@pytest.mark.parametrize("fault", ["500", "truncated", "reset", "login page"])
def test_fetch_when_a_fault_stays_gives_up_in_total_time(
    kds: FakeKds, client: MakeClient, clock: FakeClock, fault: str
) -> None:
    kds.always = FAULTS[fault]
    with pytest.raises(EndorsementError, match=r"gave up after \d+ tries in 120 s"):
        client(leaf_interval=0).fetch(LEAF)
    assert clock.monotonic() <= 120


def test_fetch_when_faults_follow_backs_off_doubling_to_a_cap(
    kds: FakeKds, client: MakeClient, clock: FakeClock
) -> None:
    serve(kds)
    kds.fail(CHAIN, *[Reply(500)] * 7)
    client(draw=0.999).fetch(CHAIN)
    ceilings = [1, 2, 4, 8, 16, BACKOFF_CAP, BACKOFF_CAP]
    assert clock.slept == pytest.approx([0.999 * c for c in ceilings])


def test_fetch_when_backing_off_draws_from_zero(kds: FakeKds, client: MakeClient, clock: FakeClock) -> None:
    serve(kds)
    kds.fail(CHAIN, Reply(500), Reply(500))
    client(draw=0.0).fetch(CHAIN)
    assert clock.slept == [0.0, 0.0]


def test_fetch_when_the_content_is_for_another_tcb_does_not_retry(kds: FakeKds, client: MakeClient) -> None:
    kds.add(LEAF, vectors.leaf_der("milan-v3-azure-ms"))
    with pytest.raises(EndorsementError, match="another chip") as caught:
        client().fetch(LEAF)
    assert caught.value.reason == "ENDORSEMENT_CERTIFICATE_MISMATCH"
    assert kds.count(LEAF) == 1


def test_fetch_when_told_to_wait_in_seconds_waits(kds: FakeKds, client: MakeClient, clock: FakeClock) -> None:
    serve(kds)
    kds.fail(LEAF, Reply(429, headers={"Retry-After": "40"}))
    assert client().fetch(LEAF).body == LEAF_DER
    assert sum(clock.slept) == pytest.approx(40)


def test_fetch_when_told_to_wait_by_date_waits(kds: FakeKds, client: MakeClient, clock: FakeClock) -> None:
    serve(kds)
    date = format_datetime(datetime.fromtimestamp(clock.now() + 60, UTC), usegmt=True)
    kds.fail(LEAF, Reply(503, headers={"Retry-After": date}))
    assert client().fetch(LEAF).body == LEAF_DER
    assert sum(clock.slept) == pytest.approx(60)


def test_fetch_when_told_to_wait_past_two_minutes_gives_up_and_says_how_long(
    kds: FakeKds, client: MakeClient, clock: FakeClock
) -> None:
    serve(kds)
    kds.fail(LEAF, Reply(429, headers={"Retry-After": "300"}))
    with pytest.raises(EndorsementError, match="fetch --wait") as caught:
        client().fetch(LEAF)
    assert caught.value.reason == "ENDORSEMENT_SERVICE_BUSY"
    assert caught.value.retry_after == pytest.approx(300)
    assert clock.slept == []


def test_fetch_when_patient_waits_past_two_minutes(kds: FakeKds, client: MakeClient, clock: FakeClock) -> None:
    serve(kds)
    kds.fail(LEAF, Reply(429, headers={"Retry-After": "300"}), Reply(429, headers={"Retry-After": "600"}))
    assert client(patient=True).fetch(LEAF).body == LEAF_DER
    assert sum(clock.slept) == pytest.approx(900)


def test_fetch_when_patient_and_told_off_for_ever_ends_within_a_day(
    kds: FakeKds, client: MakeClient, clock: FakeClock
) -> None:
    kds.always = Reply(429, headers={"Retry-After": "20000"})
    with pytest.raises(EndorsementError, match="the limit is 86400 s"):
        client(patient=True).fetch(LEAF)
    assert clock.monotonic() <= 86400


def test_fetch_when_another_was_told_to_wait_asks_only_after_that(
    kds: FakeKds, client: MakeClient, clock: FakeClock
) -> None:
    serve(kds)
    kds.fail(LEAF, Reply(429, headers={"Retry-After": "100"}), Reply(429, headers={"Retry-After": "100"}))
    with pytest.raises(EndorsementError, match="ENDORSEMENT_SERVICE_BUSY"):
        client().fetch(LEAF)
    asked = len(kds.requests)
    kds.add_leaf(vectors.leaf_der("milan-v3-azure-ms"))
    client().fetch(leaf_part(vectors.request("milan-v3-azure-ms")))
    assert clock.monotonic() >= 200
    assert len(kds.requests) == asked + 1


def test_fetch_when_leaves_follow_each_waits_its_turn(kds: FakeKds, client: MakeClient, clock: FakeClock) -> None:
    fetcher = client()
    for name in ("milan-v3-oak-cb", "milan-v3-azure-ms", "genoa-v5-oak"):
        kds.add_leaf(vectors.leaf_der(name))
        fetcher.fetch(leaf_part(vectors.request(name)))
    assert clock.slept == [10.0, 10.0]


def test_fetch_when_the_leaf_queue_is_full_chains_still_come(
    kds: FakeKds, client: MakeClient, clock: FakeClock, cache: Cache
) -> None:
    serve(kds)
    cache.hold(f"{kds.url} leaf", clock.now() + 1000)
    assert client().fetch(CHAIN).part == CHAIN
    assert clock.slept == []


def test_fetch_when_the_clock_was_set_back_forgets_the_queue(
    kds: FakeKds, client: MakeClient, clock: FakeClock, cache: Cache
) -> None:
    serve(kds)
    cache.hold(f"{kds.url} leaf", clock.now() + 365 * 86400)
    assert client().fetch(LEAF).body == LEAF_DER
    assert clock.slept == []


def test_fetch_when_it_waits_says_so(kds: FakeKds, client: MakeClient) -> None:
    heard: list[tuple[str, float]] = []
    serve(kds)
    kds.fail(LEAF, Reply(429, headers={"Retry-After": "40"}))
    client(on_wait=lambda part, seconds, why: heard.append((str(part), seconds))).fetch(LEAF)
    [(part, seconds)] = heard
    assert part == str(LEAF)
    assert seconds == pytest.approx(40)


def test_fetch_when_nothing_listens_is_unreachable(client: MakeClient) -> None:
    with FakeKds() as gone:
        url = gone.url
    with pytest.raises(EndorsementError, match="NewConnectionError") as caught:
        client(kds_url=url, leaf_interval=0).fetch(LEAF)
    assert caught.value.reason == "ENDORSEMENT_SERVICE_UNREACHABLE"


def test_fetch_when_bytes_drip_is_cut_off_in_attempt_time(kds: FakeKds, client: MakeClient) -> None:
    serve(kds)
    kds.fail(LEAF, dripping(0.05))
    quick = Timeouts(connect=1, read=1, attempt=0.4, total=120)
    assert client(timeouts=quick, leaf_interval=0).fetch(LEAF).body == LEAF_DER


def test_fetch_when_a_vlek_is_asked_for_never_asks(kds: FakeKds, client: MakeClient) -> None:
    with pytest.raises(EndorsementError, match="ENDORSEMENT_VLEK_NOT_SERVED"):
        client().fetch(leaf_part(vectors.request("milan-v3-vlek-trustee")))
    assert kds.requests == []


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("-5", None),
        ("1e9", None),
        ("99999999999", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:00:30 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:30", 20.0),
        ("Thu, 01 Jan 1970 00:00:05 GMT", 0.0),
        ("Thu, 99 Jan 1970 00:00:05 GMT", None),
    ],
)
def test_retry_after_when_read_is_seconds_from_now(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, 10.0) == seconds
