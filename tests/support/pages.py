"""TransferPages by hand: a stream whose pace a test decides."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc

import enclave_bridge as eb
from pagegate.client import Client
from pagegate.errors import PagegateError
from pagegate.rpc import codec
from pagegate.rpc.codec import Batch
from pagegate.rpc.errors import from_rpc_error
from pagegate.transfer import macs
from pagegate.v1 import transfer_pb2 as pb

SERVICE = "/pagegate.v1.PageTransfer/"


class HandStream:
    """One TransferPages call of an attested client. Messages go out when the test says so."""

    def __init__(self, client: Client, address: str, *, region: str = "book", pages: int = 8) -> None:
        self._session = client.session.session
        self._session_id = client.session.session_id
        self._region = client.session.regions[region]
        self._pages = pages
        self._id = os.urandom(16)
        self._transfer = client._bridge.transfer(
            self._id, region=self._region.number, base_gpa=self._region.base_gpa, pages=self._region.pages
        )
        self._channel = grpc.insecure_channel(address)
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call = self._channel.stream_stream(
            SERVICE + "TransferPages", codec.encode, pb.TransferPagesResponse.FromString
        )(iter(self._out.get, None), timeout=60)
        self._sent = 0

    def begin(self) -> pb.TransferBegun:
        """Begins, and takes the server's answer."""
        mode = pb.TRANSFER_MODE_REPLACE
        mac = self._session.mac(eb.MacPurpose.TRANSFER, macs.begin(self._id, self._region.number, self._pages, mode))
        self._out.put(
            pb.TransferPagesRequest(
                begin=pb.TransferBegin(
                    session_id=self._session_id,
                    transfer_id=self._id,
                    region=self._region.number,
                    expected_pages=self._pages,
                    mode=mode,
                    mac=mac,
                )
            )
        )
        return next(self.call).begun

    def batch(self, pages: int = 1) -> None:
        """Sends the next pages."""
        records, _ = self._session.seal(
            self._transfer,
            region=self._region.number,
            first_gpa=self._region.base_gpa + self._sent * eb.PAGE_SIZE,
            plain=os.urandom(pages * eb.PAGE_SIZE),
        )
        self._out.put(Batch(records, self._number))
        self._sent += pages
        self._number += 1

    _number = 0

    def commit(self) -> None:
        """Asks for the commit."""
        self._out.put(
            pb.TransferPagesRequest(
                commit=pb.TransferCommit(pages=self._sent, mac=self._session.commit_mac(self._transfer))
            )
        )

    def answers(self) -> Iterator[pb.TransferPagesResponse]:
        """What the server says until the stream ends, without the error it may end with."""
        try:
            yield from self.call
        except grpc.RpcError:
            return

    def refusal(self) -> PagegateError:
        """The typed error the stream ends with."""
        for _ in self.answers():
            pass
        return from_rpc_error(self.call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.put(None)
        self.call.cancel()
        self._channel.close()
        self._transfer.close()


def details(call: grpc.Call) -> dict[str, Any]:
    """The google.rpc details of a call's status, by the name of their type."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    status = rpc_status.from_call(call)
    found: dict[str, Any] = {}
    for detail in status.details if status else ():
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = kind.FromString(detail.value)
    return found
