"""Peers that are too slow: a stream that is opened and then starved, or answers that nobody reads.

Both cost the same thing, time in which this side waits for the other. So both have one measure: a peer
may let this side wait for so long, and every byte that it moves buys it a little more time.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from pagegate.errors import TransferError
from pagegate.rpc.flight import Flight

_T = TypeVar("_T")
FIRST_MESSAGE_S = 5.0
"""Seconds for the first message of a call: until then nothing is known of the peer."""
_LOOK_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class PaceLimits:
    """How slow a peer may be."""

    wait_s: float = 30.0
    """Most seconds that this side waits for a peer that moves nothing."""
    bytes_per_s: float = 16 * 1024
    """What a peer must move in the long run, bytes a second."""


class Patience:
    """The seconds that one peer still has on one stream. Not thread-safe: one side of a stream each."""

    def __init__(self, limits: PaceLimits, *, first_s: float | None = None) -> None:
        self._limits = limits
        self.left = limits.wait_s if first_s is None else min(first_s, limits.wait_s)

    def waited(self, seconds: float, size: int) -> None:
        """This side waited `seconds` for `size` bytes to move."""
        earned = size / self._limits.bytes_per_s
        self.left = min(self._limits.wait_s, self.left - seconds + earned)

    def trust(self) -> None:
        """The first message is here: from now on the whole wait is allowed."""
        self.left = self._limits.wait_s

    def worn_out(self, what: str) -> TransferError:
        """The error for a peer without time left."""
        return TransferError(
            "SLOW_PEER",
            f"the peer {what}: a call may wait {self._limits.wait_s:g} s in all ({FIRST_MESSAGE_S:g} s for its first "
            f"message) and must move {self._limits.bytes_per_s:g} bytes a second. Retry when it can go on",
            retry_after=1.0,
        )


@dataclass(frozen=True, slots=True)
class _Arrived(Generic[_T]):
    message: _T
    size: int


class Inbox(Iterator[_T]):
    """What a peer sends, read one message ahead in a thread of its own: gRPC's iterator blocks without a limit
    in time. Every message is accounted for in `flight` until the next is asked for. Close it on every path."""

    def __init__(
        self,
        requests: Iterator[_T],
        readers: Executor,
        patience: Patience,
        flight: Flight,
        size_of: Callable[[_T], int],
        check: Callable[[_T | None], None],
    ) -> None:
        """`check` is asked about every message before it is given out, and about None while waiting; it raises
        to end the stream."""
        self._requests = requests
        self._patience = patience
        self._flight = flight
        self._size_of = size_of
        self._check = check
        self._arrived: queue.SimpleQueue[_Arrived[_T] | Exception | None] = queue.SimpleQueue()
        self._wanted = threading.Semaphore(1)
        self._lock = threading.Lock()
        self._closed = False
        self._held = 0
        self._first = True
        readers.submit(self._read)

    def _read(self) -> None:
        while True:
            self._wanted.acquire()
            if self._closed:
                return
            try:
                message = next(self._requests, None)
                if message is None:
                    self._arrived.put(None)
                    return
                size = self._size_of(message)
                self._flight.take(size)
            except Exception as error:
                # A bare Exception is what gRPC raises when the call ends or is cancelled.
                self._arrived.put(error)
                return
            with self._lock:
                if self._closed:
                    self._flight.give(size)
                    return
                self._arrived.put(_Arrived(message, size))
            del message

    def __next__(self) -> _T:
        """Raises TransferError SLOW_PEER, what `check` raises, or what broke the stream."""
        self._release()
        if not self._first:
            self._wanted.release()
        started = time.monotonic()
        arrived = self._wait(started)
        if arrived is None:
            raise StopIteration
        if isinstance(arrived, Exception):
            raise arrived
        self._held = arrived.size
        self._check(arrived.message)
        self._patience.waited(time.monotonic() - started, arrived.size)
        if self._first:
            self._first = False
            self._patience.trust()
            self._wanted.release()
        return arrived.message

    def _wait(self, started: float) -> _Arrived[_T] | Exception | None:
        until = started + self._patience.left
        while True:
            left = until - time.monotonic()
            try:
                return self._arrived.get(timeout=max(0.0, min(left, _LOOK_EVERY_S)))
            except queue.Empty:
                self._check(None)
                if left <= 0:
                    raise self._patience.worn_out("sent too little") from None

    def _release(self) -> None:
        if self._held:
            self._flight.give(self._held)
            self._held = 0

    def close(self) -> None:
        """Gives back what is accounted for; the reading thread ends with the call at the latest."""
        self._release()
        with self._lock:
            self._closed = True
            while not self._arrived.empty():
                waiting = self._arrived.get()
                if isinstance(waiting, _Arrived):
                    self._flight.give(waiting.size)
        self._wanted.release()


@dataclass(slots=True)
class Wait:
    """One wait that the watchdog knows of."""

    until: float
    late: Callable[[], None]
    over: bool = False
    """True when it took too long and `late` was called."""


class Watchdog:
    """Ends calls that are stuck inside gRPC, where only another thread can see it: answers that nobody reads,
    and a unary call whose message does not come."""

    def __init__(self) -> None:
        self._known: dict[int, Wait] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to look."""
        self._thread = threading.Thread(target=self._run, name="pagegate-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Looks no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def waiting(self, patience: Patience, late: Callable[[], None]) -> Iterator[Wait]:
        """Calls `late`, in the watchdog's thread, when the block takes longer than the peer has left."""
        wait = Wait(time.monotonic() + patience.left, late)
        with self._lock:
            self._known[id(wait)] = wait
        try:
            yield wait
        finally:
            with self._lock:
                self._known.pop(id(wait), None)

    def watch(
        self, responses: Iterator[_T], patience: Patience, size_of: Callable[[_T], int], late: Callable[[], None]
    ) -> Iterator[_T]:
        """The responses; `late` is called when the peer does not take one in time."""
        for response in responses:
            started = time.monotonic()
            with self.waiting(patience, late):
                yield response
            patience.waited(time.monotonic() - started, size_of(response))

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            now = time.monotonic()
            with self._lock:
                over = [wait for wait in self._known.values() if now >= wait.until and not wait.over]
                for wait in over:
                    wait.over = True
            for wait in over:
                wait.late()
