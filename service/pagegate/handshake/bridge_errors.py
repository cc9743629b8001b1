"""Refusals of the bridge during a handshake, as handshake errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import enclave_bridge as eb
from pagegate.errors import BridgeError, HandshakeError

_PEER_FAULTS = {
    "POINT": ("KEY_SHARE_INVALID", "the peer's ephemeral key is not an acceptable point of the suite's curve"),
    "FINISHED": (
        "FINISHED_INVALID",
        "the peer's finished MAC does not verify: the messages were changed on the way, or it does not hold the keys",
    ),
    "SUITE": ("SUITE_UNSUPPORTED", "the peer chose a suite that was not offered"),
}


@contextmanager
def handshake_faults() -> Iterator[None]:
    """Turns bridge statuses that are the peer's doing into HandshakeError, the rest into BridgeError."""
    try:
        yield
    except eb.BridgeStatusError as error:
        fault = _PEER_FAULTS.get(error.reason)
        if fault:
            raise HandshakeError(*fault) from error
        if error.reason == "LIMIT":
            raise HandshakeError(
                "TOO_MANY_SESSIONS", "all session slots are in use; retry later or raise max_sessions", retry_after=1.0
            ) from error
        if error.reason == "BRIDGE_DIED":
            raise HandshakeError(
                error.reason, "the bridge process died during the handshake; attest again", retry_after=0.2
            ) from error
        raise BridgeError(error.reason, str(error)) from error
