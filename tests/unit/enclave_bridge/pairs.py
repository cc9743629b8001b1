"""Builders: two bridges' sessions that have shaken hands."""

from __future__ import annotations

from dataclasses import dataclass

from enclave_bridge import PAGE_SIZE, Bridge, BridgeStatusError, IsolatedBridge, Role, Session, Suite, Transfer

REGION = 3
BASE_GPA = 0x40000000
SESSION_ID = b"s" * 16
TRANSFER_ID = b"t" * 16
BACKENDS: tuple[type[Bridge], ...] = (Bridge, IsolatedBridge)


def usable_kernels() -> list[str]:
    """Which AES-GCM implementations this CPU can run, best first."""
    return [name for name in ("avx512", "vaes256", "aesni", "openssl") if _opens(name)]


def _opens(kernel: str) -> bool:
    try:
        Bridge(max_sessions=1, max_handshakes=1, gcm_kernel=kernel).close()
    except BridgeStatusError as error:
        if error.reason != "ARGUMENT":  # what the CPU cannot run; anything else is a defect
            raise
        return False
    return True


@dataclass(frozen=True)
class Pair:
    """A client and a server, each with a bridge of its own."""

    client_bridge: Bridge
    server_bridge: Bridge
    client: Session
    server: Session

    def transfers(self, pages: int) -> tuple[Transfer, Transfer]:
        """The sender's and the receiver's account of the same window."""
        return tuple(  # type: ignore[return-value]
            bridge.transfer(TRANSFER_ID, region=REGION, base_gpa=BASE_GPA, pages=pages)
            for bridge in (self.client_bridge, self.server_bridge)
        )


def connect(suite: Suite = Suite.P384_SHA384_AES256GCM, backend: type[Bridge] = Bridge) -> Pair:
    """Shake hands between two bridges."""
    client_bridge, server_bridge = (backend(max_sessions=4, max_handshakes=4) for _ in range(2))
    client = client_bridge.handshake(Role.CLIENT, list(Suite))
    server = server_bridge.handshake(Role.SERVER, [suite])
    for side in (client, server):
        side.absorb(b"hello")
        side.select(suite)
    client_key, server_key = client.public_key(suite), server.public_key(suite)
    client.derive(server_key)
    server.derive(client_key)
    server.check_finished(client.finished())
    client.check_finished(server.finished())
    return Pair(client_bridge, server_bridge, client.session(SESSION_ID), server.session(SESSION_ID))


def pages(n: int) -> bytes:
    """n pages, each different."""
    return b"".join(bytes([1 + i % 255]) * PAGE_SIZE for i in range(n))
