"""A server certificate that changes under open connections: real TLS, real handshakes bound to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pagegate.client import Client
from pagegate.errors import HandshakeError
from pagegate.rpc.tls import ClientTls, ServerTls
from pagegate.server import Server
from support.certificates import self_signed

Serve = Callable[..., Server]
Connect = Callable[..., Client]


@pytest.fixture
def pair(tmp_path: Path) -> Callable[[str], tuple[ServerTls, Path]]:
    """pair(name): a new certificate with its key, and the file of the certificate alone."""

    def make(name: str) -> tuple[ServerTls, Path]:
        certificate, key = self_signed()
        path = tmp_path / f"{name}.pem"
        path.write_bytes(certificate)
        return ServerTls(certificate, key), path

    return make


def swap(server: Server, tls: ServerTls) -> None:
    assert server.tls is not None
    server.tls.replace(tls)


def test_connection_when_the_certificate_changes_then_attests_again_and_sends(
    serve: Serve, connect: Connect, pair: Callable[[str], tuple[ServerTls, Path]]
) -> None:
    (old, path), (new, _) = pair("old"), pair("new")
    server = serve(tls=old)
    client = connect(server, tls=ClientTls.pinned(path))
    client.attest()
    swap(server, new)
    first = client.session.session_id
    assert client.attest().session_id != first
    assert client.send("book", b"p" * 4096).generation == 1


def test_connection_when_new_then_sees_the_new_certificate_and_is_bound_to_it(
    serve: Serve, connect: Connect, pair: Callable[[str], tuple[ServerTls, Path]]
) -> None:
    (old, old_path), (new, new_path) = pair("old"), pair("new")
    server = serve(tls=old)
    swap(server, new)
    assert connect(server, tls=ClientTls.pinned(new_path)).attest()
    with pytest.raises(HandshakeError) as refused:
        connect(server, tls=ClientTls.pinned(old_path)).attest()
    assert refused.value.reason == "PEER_UNAVAILABLE"


def test_connection_when_the_overlap_is_over_then_refused(
    serve: Serve, connect: Connect, pair: Callable[[str], tuple[ServerTls, Path]]
) -> None:
    (old, path), (new, _) = pair("old"), pair("new")
    server = serve(tls=old, tls_overlap_s=0.0)
    client = connect(server, tls=ClientTls.pinned(path))
    client.attest()
    swap(server, new)
    with pytest.raises(HandshakeError) as refused:
        client.attest()
    assert refused.value.reason == "TLS_BINDING"


def test_client_when_both_certificates_are_pinned_then_crosses_the_change(
    serve: Serve, connect: Connect, pair: Callable[[str], tuple[ServerTls, Path]], tmp_path: Path
) -> None:
    (old, old_path), (new, new_path) = pair("old"), pair("new")
    both = tmp_path / "both.pem"
    both.write_bytes(old_path.read_bytes() + new_path.read_bytes())
    server = serve(tls=old, tls_overlap_s=0.0)
    client = connect(server, tls=ClientTls.pins(both))
    assert client.send("book", b"p" * 4096).generation == 1
    swap(server, new)
    client.attest()
    assert client.send("book", b"q" * 4096).generation == 2


def test_client_when_the_server_restarts_with_the_next_certificate_then_goes_on(
    serve: Serve, connect: Connect, pair: Callable[[str], tuple[ServerTls, Path]], tmp_path: Path
) -> None:
    (old, old_path), (new, new_path) = pair("old"), pair("new")
    both = tmp_path / "both.pem"
    both.write_bytes(old_path.read_bytes() + new_path.read_bytes())
    server = serve(tls=old)
    client = connect(server, tls=ClientTls.pins(both))
    client.attest()
    address = server.address
    server.stop(0.0)
    serve(tls=new, listen=address)
    assert client.send("book", b"q" * 4096).generation == 1


def test_server_when_the_client_names_a_certificate_it_never_had_then_refused(
    serve: Serve, connect: Connect, pair: Callable[[str], tuple[ServerTls, Path]]
) -> None:
    (tls, path), (_, foreign) = pair("own"), pair("foreign")

    class Diverted(ClientTls):
        """A client whose TLS ends at somebody who shows another certificate."""

        __slots__ = ()

        @property
        def binding(self) -> bytes:
            return ClientTls.pinned(foreign).binding

    seen = ClientTls.pinned(path)
    server = serve(tls=tls)
    with pytest.raises(HandshakeError) as refused:
        connect(server, tls=Diverted(seen.certificate, seen.server_name)).attest()
    assert refused.value.reason == "TLS_BINDING"
    assert len(server.sessions) == 0


def test_server_when_it_has_no_tls_and_the_client_sees_one_then_refused(
    serve: Serve, connect: Connect, pair: Callable[[str], tuple[ServerTls, Path]], platform_for, appraiser
) -> None:
    from pagegate.evidence.model import AccessMode
    from pagegate.handshake.client import ClientHandshake

    server = serve()
    client = connect(server)
    handshake = ClientHandshake(
        client._bridge, platform_for("client"), appraiser, {"book": AccessMode.READ}, tls_binding=b"b" * 32
    )
    with pytest.raises(HandshakeError) as refused:
        client._run_handshake(handshake)
    handshake.close()
    assert refused.value.reason == "TLS_BINDING"
