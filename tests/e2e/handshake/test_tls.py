"""Real TLS below the handshake, bound to the server certificate's key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pagegate.client import Client
from pagegate.errors import HandshakeError
from pagegate.rpc.tls import ClientTls, ServerTls
from pagegate.server import Server
from support.certificates import self_signed


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ServerTls]:
    """A self-signed certificate on disk, and the server's side of it."""
    pem, key = self_signed()
    (tmp_path / "server.pem").write_bytes(pem)
    (tmp_path / "server.key").write_bytes(key)
    return tmp_path / "server.pem", ServerTls.load(tmp_path / "server.pem", tmp_path / "server.key")


def test_attest_when_the_certificate_is_pinned_then_a_page_gets_through(
    serve: Callable[..., Server], connect: Callable[..., Client], certificate: tuple[Path, ServerTls]
) -> None:
    path, tls = certificate
    client = connect(serve(tls=tls), tls=ClientTls.pinned(path))
    assert client.send_page("book", 1 << 32, b"p" * 4096) == 1
    assert bytes(client.read("book")[0][:4096]) == b"p" * 4096


def test_attest_when_another_certificate_is_pinned_then_no_connection(
    serve: Callable[..., Server],
    connect: Callable[..., Client],
    certificate: tuple[Path, ServerTls],
    tmp_path: Path,
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(self_signed()[0])
    with pytest.raises(HandshakeError) as refused:
        connect(serve(tls=certificate[1]), tls=ClientTls.pinned(other)).attest()
    assert refused.value.reason == "PEER_UNAVAILABLE"


def test_attest_when_the_client_uses_no_tls_then_no_connection(
    serve: Callable[..., Server], connect: Callable[..., Client], certificate: tuple[Path, ServerTls]
) -> None:
    with pytest.raises(HandshakeError) as refused:
        connect(serve(tls=certificate[1])).attest()
    assert refused.value.reason == "PEER_UNAVAILABLE"


class Terminated(ServerTls):
    """A server behind something that terminates TLS: what it shows is not what it attests."""

    __slots__ = ()

    @property
    def binding(self) -> bytes:
        """Of the certificate that the server believes clients see."""
        return bytes(32)


def test_attest_when_tls_is_terminated_on_the_way_then_tls_binding(
    serve: Callable[..., Server], connect: Callable[..., Client], certificate: tuple[Path, ServerTls]
) -> None:
    path, tls = certificate
    server = serve(tls=Terminated(tls.certificate, tls.key))
    with pytest.raises(HandshakeError) as refused:
        connect(server, tls=ClientTls.pinned(path)).attest()
    assert refused.value.reason == "TLS_BINDING"
    assert len(server.sessions) == 0
