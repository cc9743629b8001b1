"""The Attest stream by hand: every message in the open, over real gRPC."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import grpc
import pytest

import enclave_bridge as eb
from pagegate.errors import HandshakeError, PagegateError
from pagegate.evidence.model import AccessMode, Appraiser
from pagegate.handshake.client import ClientHandshake
from pagegate.rpc.errors import from_rpc_error
from pagegate.server import Server
from pagegate.v1 import attestation_pb2 as pb
from pagegate.v1 import attestation_pb2_grpc as pb_grpc
from support.platforms import CLIENT, Guests


class Stream:
    """One Attest call, and an honest client's state machine to take messages from."""

    def __init__(self, server: Server, handshake: ClientHandshake) -> None:
        self.handshake = handshake
        self._channel = grpc.insecure_channel(server.address)
        self._out: queue.SimpleQueue[pb.AttestRequest | None] = queue.SimpleQueue()
        self._call = pb_grpc.AttestationStub(self._channel).Attest(iter(self._out.get, None), timeout=30)

    def send(self, **step: object) -> None:
        """Sends one step by its field name."""
        self._out.put(pb.AttestRequest(**step))  # type: ignore[arg-type]

    def hello(self) -> None:
        """Sends an honest ClientHello."""
        self.send(client_hello=self.handshake.hello())

    def answer(self) -> pb.ServerEvidence:
        """The server's answer."""
        return next(self._call).server_evidence

    def prove(self) -> None:
        """Takes the server's answer and sends an honest proof."""
        answer = self.answer()
        proof = self.handshake.prove(answer.server_hello, answer.evidence)
        self.send(client_evidence=pb.ClientEvidence(evidence=proof.evidence, client_finished=proof.finished))

    def finished(self) -> pb.ServerFinished:
        """The server's last message."""
        return next(self._call).server_finished

    def connected(self) -> None:
        """Waits until the channel stands, so that the call is on its way."""
        grpc.channel_ready_future(self._channel).result(20)

    def end(self) -> None:
        """Ends this side of the stream."""
        self._out.put(None)

    def cancel(self) -> None:
        """Goes away."""
        self._call.cancel()

    def failure(self) -> grpc.RpcError:
        """The error the stream ends with."""
        with pytest.raises(grpc.RpcError) as caught:
            for _ in self._call:
                pass
        return caught.value

    def refusal(self) -> PagegateError:
        """The typed error the stream ends with."""
        return from_rpc_error(self.failure(), HandshakeError)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._call.cancel()
        self._channel.close()
        self.handshake.close()


@pytest.fixture
def stream(platform_for: Guests, appraiser: Appraiser) -> Iterator[Callable[[Server], Stream]]:
    """stream(server): an Attest call that has sent nothing yet."""
    with contextlib.ExitStack() as stack:
        bridge = stack.enter_context(eb.Bridge(max_sessions=8, max_handshakes=8))

        def open_stream(server: Server) -> Stream:
            wanted = {"book": AccessMode.READ_WRITE}
            return stack.enter_context(Stream(server, ClientHandshake(bridge, platform_for(CLIENT), appraiser, wanted)))

        yield open_stream
