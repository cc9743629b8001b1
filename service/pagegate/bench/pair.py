"""Two ends of a session without evidence: for measuring the bridge alone."""

from __future__ import annotations

import enclave_bridge as eb


def shake_hands(client_bridge: eb.Bridge, server_bridge: eb.Bridge) -> tuple[eb.Session, eb.Session]:
    """The client's end and the server's, of the default suite. Raises BridgeStatusError."""
    suite = eb.Suite.P384_SHA384_AES256GCM
    client, server = client_bridge.handshake(eb.Role.CLIENT, [suite]), server_bridge.handshake(eb.Role.SERVER, [suite])
    for side in (client, server):
        side.absorb(b"bench")
        side.select(suite)
    keys = client.public_key(suite), server.public_key(suite)
    client.derive(keys[1])
    server.derive(keys[0])
    server.check_finished(client.finished())
    client.check_finished(server.finished())
    session_id = client_bridge.random(eb.SESSION_ID_SIZE)
    return client.session(session_id), server.session(session_id)
