"""Keeps a server's bridge alive: an isolated one that dies is replaced, at a bounded rate."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from enum import StrEnum

import enclave_bridge as eb
from pagegate.errors import BridgeError, TransferError

_log = logging.getLogger(__name__)
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 30.0
_STEADY_S = 60.0
"""A bridge that lived this long died of something new: the next one is started without delay."""


class BridgeKind(StrEnum):
    """Where a server's keys and plaintext staging are."""

    ISOLATED = "isolated"
    IN_PROCESS = "in-process"


class BridgeKeeper:
    """The one bridge of a server. `current` is what to use now; never keep it beyond a call."""

    def __init__(
        self,
        kind: BridgeKind,
        *,
        max_sessions: int,
        max_handshakes: int,
        max_guards: int = 64,
        changed: Callable[[bool], None],
    ) -> None:
        """`changed(False)` is called when the bridge has died, before any other is there; `changed(True)` when
        there is another (`opened`), before anybody gets it as `current`. Raises BridgeError: the first bridge cannot be had; a server does not start without one.
        """
        self._kind = kind
        self._max_sessions = max_sessions
        self._max_handshakes = max_handshakes
        self._max_guards = max_guards
        self._changed = changed
        self.opened, self.info = self._open_first()
        """The bridge opened last, and what it was found to be."""
        self.replaced = 0
        """How many bridges have died and been replaced."""
        self._bridge: eb.Bridge | None = self.opened
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if kind is BridgeKind.ISOLATED:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
            self._thread = threading.Thread(target=self._watch, name="pagegate-bridge", daemon=True)
            self._thread.start()

    def _open(self) -> tuple[eb.Bridge, eb.BridgeInfo]:
        kind = eb.IsolatedBridge if self._kind is BridgeKind.ISOLATED else eb.Bridge
        bridge = kind(max_sessions=self._max_sessions, max_handshakes=self._max_handshakes, max_guards=self._max_guards)
        return bridge, bridge.info

    def _open_first(self) -> tuple[eb.Bridge, eb.BridgeInfo]:
        try:
            return self._open()
        except eb.BridgeStatusError as error:
            if self._kind is BridgeKind.IN_PROCESS:
                raise BridgeError(error.reason, str(error)) from error
            raise BridgeError(
                error.reason,
                f"the isolated bridge does not start ({error}). Its own words are above, if it had any; it needs a "
                "kernel with seccomp. '--bridge in-process' keeps the keys in the server's process instead: weaker",
            ) from error

    @property
    def current(self) -> eb.Bridge:
        """The bridge to use. Raises TransferError BRIDGE_DIED while there is none."""
        bridge = self._bridge
        if bridge is None:
            raise TransferError(
                "BRIDGE_DIED", "the bridge has died and another is being started; attest again", retry_after=0.2
            )
        return bridge

    @property
    def alive(self) -> bool:
        """False between the end of one bridge and the start of the next."""
        return self._bridge is not None

    # ---- watching -----------------------------------------------------------------------

    def _watch(self) -> None:
        delay = 0.0
        while (bridge := self._bridge) is not None:
            lived = self._until_it_ends(bridge)
            if self._stopped.is_set():
                return
            delay = 0.0 if lived >= _STEADY_S else min(_LONGEST_DELAY_S, max(_FIRST_DELAY_S, delay * 2))
            _log.error("the bridge process has died; its sessions are over. Another starts in %.2f s", delay)
            self._bridge = None
            self._changed(False)
            # Not closed: a call that took it just now hears BRIDGE_DIED from it, not STATE. It goes with its last user.
            delay = self._start_another(delay)

    def _until_it_ends(self, bridge: eb.Bridge) -> float:
        """Seconds that the bridge was watched until it ended, or until this keeper is closed."""
        assert isinstance(bridge, eb.IsolatedBridge)
        started = time.monotonic()
        poll = select.poll()
        for descriptor in (bridge.pidfd, self._wake):
            poll.register(descriptor, select.POLLIN)
        poll.poll()
        return time.monotonic() - started

    def _start_another(self, delay: float) -> float:
        while not self._stopped.wait(delay):
            try:
                self.opened, self.info = self._open()
            except eb.BridgeStatusError as error:
                delay = min(_LONGEST_DELAY_S, max(_FIRST_DELAY_S, delay * 2))
                _log.error("no bridge could be started (%s); next attempt in %.2f s", error, delay)
                continue
            self._changed(True)
            self._bridge = self.opened
            self.replaced += 1
            _log.warning("another bridge process serves; peers attest again")
            break
        return delay

    def close(self) -> None:
        """Ends the bridge: every key is gone."""
        self._stopped.set()
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            os.close(self._wake)
            self._thread = None
        bridge, self._bridge = self._bridge, None
        if bridge is not None:
            bridge.close()
