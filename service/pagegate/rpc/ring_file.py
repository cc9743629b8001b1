"""Shared memory that an operator gives: a file or device that two machines map, such as an ivshmem BAR.

It is one ring, so one client at a time has it; others go by gRPC. No socket tells that the client is gone: what is idle
or silent for too long is given to the next.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path

import enclave_bridge as eb
from pagegate.errors import ConfigError, PagegateError
from pagegate.rpc.ring import PATIENCE_S, RingLink, RingOffer
from pagegate.rpc.ring_transfers import RingTransfers

_log = logging.getLogger(__name__)
IDLE_S = 60.0
"""Seconds after which a client that begins no transfer loses the ring."""


def open_file(path: Path) -> int:
    """A descriptor of what the operator named; the caller closes it. Raises ConfigError RING_FILE."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError("RING_FILE", f"cannot open {path}: {error.strerror}") from error


class RingFile:
    """The one ring in a file, for one session at a time."""

    def __init__(
        self,
        path: Path,
        transfers: RingTransfers,
        *,
        batch_pages: int,
        idle_s: float = IDLE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Raises ConfigError RING_FILE: it cannot be opened or mapped, or is too short."""
        self._path = path
        self._transfers = transfers
        self._idle_s = idle_s
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._link: RingLink | None = None
        self._closed = False
        try:
            self.capacity = eb.channel_capacity(batch_pages)
            self._format()
        except eb.BridgeStatusError as error:
            raise ConfigError(
                "RING_FILE", f"{path} cannot hold a ring for batches of {batch_pages} pages: {error}"
            ) from error

    def _format(self) -> RingLink:
        fd = open_file(self._path)
        try:
            eb.format_channel(fd, self.capacity)
            channel = eb.Channel(fd, self.capacity, role=eb.Role.SERVER, named=True)
        finally:
            os.close(fd)
        return RingLink(channel, None, patience_s=self._patience_s)

    def start(self) -> None:
        """Nothing to do: an offer starts it."""

    def offer(self, session_id: bytes) -> RingOffer | None:
        """The ring, made anew, unless another client has it."""
        with self._lock:
            if self._link is not None or self._closed:
                return None
            try:
                self._link = link = self._format()
            except (eb.BridgeStatusError, ConfigError) as error:
                _log.warning("no ring in %s: %s", self._path, error)
                return None
        threading.Thread(target=self._serve, args=(link, session_id), name="pagegate-ring", daemon=True).start()
        return RingOffer("", b"", self.capacity)

    def _serve(self, link: RingLink, session_id: bytes) -> None:
        try:
            self._transfers.run(link, session_id, f"ring:{self._path.name}", idle_s=self._idle_s)
        except PagegateError as error:
            _log.info("the ring in %s ended: %s", self._path, error)
        except Exception:
            _log.exception("the ring in %s ended by a fault of this server", self._path)
        finally:
            link.close()
            with self._lock:
                self._link = None

    def close(self) -> None:
        """Ends the ring; a running transfer can be resumed elsewhere."""
        with self._lock:
            self._closed = True
            link = self._link
        if link is not None:
            with contextlib.suppress(PagegateError):
                link.close()
