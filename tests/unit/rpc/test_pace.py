"""Patience, inbox, watchdog, flight and retries, each on its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from pagegate.errors import TransferError
from pagegate.rpc.flight import Flight
from pagegate.rpc.pace import Inbox, PaceLimits, Patience, Watchdog
from pagegate.rpc.retry import Retries


@pytest.fixture
def readers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def ignore(_message: object) -> None:
    """A check that holds."""


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(TransferError) as caught:
        call()
    return caught.value.reason


# ---- patience ---------------------------------------------------------------------------


def test_patience_when_nothing_moves_then_wears_out_by_the_time_waited() -> None:
    patience = Patience(PaceLimits(10.0, 100.0))
    patience.waited(4.0, 0)
    assert patience.left == 6.0


def test_patience_when_bytes_move_then_earns_time_up_to_the_limit() -> None:
    patience = Patience(PaceLimits(10.0, 100.0))
    patience.waited(4.0, 200)
    assert patience.left == 8.0
    patience.waited(0.0, 10_000)
    assert patience.left == 10.0


def test_patience_when_the_first_message_is_awaited_then_is_short_until_it_is_there() -> None:
    patience = Patience(PaceLimits(10.0, 100.0), first_s=2.0)
    assert patience.left == 2.0
    patience.trust()
    assert patience.left == 10.0


# ---- inbox ------------------------------------------------------------------------------


def inbox(
    readers: ThreadPoolExecutor,
    requests: Iterator[bytes],
    flight: Flight | None = None,
    check: Callable[[bytes | None], None] = ignore,
    wait_s: float = 10.0,
) -> Inbox[bytes]:
    return Inbox(requests, readers, Patience(PaceLimits(wait_s, 1e9)), flight or Flight(1 << 20), len, check)


def test_inbox_when_read_then_gives_everything_in_order(readers: ThreadPoolExecutor) -> None:
    box = inbox(readers, iter([b"a", b"bb", b"ccc"]))
    assert list(box) == [b"a", b"bb", b"ccc"]
    box.close()


def test_inbox_when_read_then_holds_the_message_and_one_ahead_and_no_more(readers: ThreadPoolExecutor) -> None:
    flight = Flight(1 << 20)
    taken: queue.SimpleQueue[int] = queue.SimpleQueue()

    def requests() -> Iterator[bytes]:
        for number in range(5):
            taken.put(number)
            yield bytes(10)

    box = inbox(readers, requests(), flight)
    next(box)
    assert [taken.get(timeout=20) for _ in range(2)] == [0, 1]
    deadline = time.monotonic() + 20
    while flight.used < 20:
        assert time.monotonic() < deadline
    assert (flight.used, taken.empty()) == (20, True)
    box.close()
    assert flight.used == 0


def test_inbox_when_the_stream_breaks_then_raises_what_broke_it(readers: ThreadPoolExecutor) -> None:
    def requests() -> Iterator[bytes]:
        yield b"a"
        raise grpc.RpcError("gone")

    box = inbox(readers, requests())
    assert next(box) == b"a"
    with pytest.raises(grpc.RpcError):
        next(box)
    box.close()


def test_inbox_when_nothing_comes_then_slow_peer(readers: ThreadPoolExecutor) -> None:
    over = threading.Event()

    def requests() -> Iterator[bytes]:
        over.wait(20)
        yield from ()

    box = inbox(readers, requests(), wait_s=0.05)
    assert reason(lambda: next(box)) == "SLOW_PEER"
    over.set()
    box.close()


def test_inbox_when_the_check_says_no_then_raises_and_gives_the_bytes_back(readers: ThreadPoolExecutor) -> None:
    def refuse(message: bytes | None) -> None:
        if message:
            raise TransferError("DRAINING", "no")

    flight = Flight(100)
    box = inbox(readers, iter([b"abc"]), flight, refuse)
    assert reason(lambda: next(box)) == "DRAINING"
    box.close()
    assert flight.used == 0


def test_inbox_when_there_is_no_room_in_flight_then_raises(readers: ThreadPoolExecutor) -> None:
    box = inbox(readers, iter([bytes(11)]), Flight(10, room_within_s=0.01))
    assert reason(lambda: next(box)) == "TOO_MANY_BYTES_IN_FLIGHT"
    box.close()


# ---- watchdog ---------------------------------------------------------------------------


def test_watchdog_when_a_wait_takes_too_long_then_calls_late_once() -> None:
    watchdog, late = Watchdog(), threading.Semaphore(0)
    watchdog.start()
    with watchdog.waiting(Patience(PaceLimits(0.01, 1.0)), late.release) as wait:
        assert late.acquire(timeout=20)
        assert not late.acquire(timeout=0.6)
    watchdog.stop()
    assert wait.over


def test_watchdog_when_responses_are_taken_in_time_then_lets_them_be() -> None:
    watchdog, late = Watchdog(), threading.Event()
    watchdog.start()
    patience = Patience(PaceLimits(5.0, 1.0))
    assert list(watchdog.watch(iter([b"a", b"b"]), patience, len, late.set)) == [b"a", b"b"]
    watchdog.stop()
    assert not late.is_set()


# ---- flight -----------------------------------------------------------------------------


def test_flight_when_room_comes_in_time_then_taken() -> None:
    flight = Flight(10, room_within_s=20.0)
    flight.take(8)
    threading.Timer(0.05, flight.give, (8,)).start()
    flight.take(5)
    assert flight.used == 5


# ---- retries ----------------------------------------------------------------------------


class Sleeper:
    """Records pauses instead of making them."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def retries(self, limit: int = 3, share: float = 0.0, max_wait_s: float = 60.0) -> Retries:
        return Retries(limit, max_wait_s=max_wait_s, sleep=self.pauses.append, share=lambda: share)


def failed(retry_after: float | None = None) -> TransferError:
    return TransferError("X", "x", retry_after=retry_after)


def test_pause_when_the_server_says_how_long_then_not_shorter_and_with_jitter() -> None:
    sleeper = Sleeper()
    assert sleeper.retries(share=0.0).pause(failed(4.0))
    assert sleeper.retries(share=1.0).pause(failed(4.0))
    assert sleeper.pauses == [4.0, 6.0]


def test_pause_when_the_server_says_nothing_then_ever_longer_and_bounded() -> None:
    sleeper = Sleeper()
    retries = sleeper.retries(limit=8)
    while retries.pause(failed()):
        pass
    assert sleeper.pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_pause_when_there_is_no_further_try_then_false_at_once() -> None:
    sleeper = Sleeper()
    assert not sleeper.retries(limit=0).pause(failed(1.0))
    assert sleeper.pauses == []


def test_pause_when_the_pauses_would_be_too_long_in_all_then_false() -> None:
    sleeper = Sleeper()
    retries = sleeper.retries(limit=100, max_wait_s=10.0)
    assert retries.pause(failed(6.0))
    assert not retries.pause(failed(6.0))
    assert retries.made == 1
