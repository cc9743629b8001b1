"""The server process of a benchmark: pagegate, and the same shape of service without attestation and sealing.

Run as `python -m pagegate.bench.peer DIRECTORY PAGES`; prints one JSON line of addresses and serves until its
standard input ends. The baseline writes the bytes it gets into the same kind of backing, acknowledges as often,
and commits the same way, so that what differs is what sealing costs.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

import enclave_bridge as eb
from pagegate.bench.setup import SERVER, appraiser, certificate, platform
from pagegate.client import CHANNEL_OPTIONS
from pagegate.rpc import codec
from pagegate.rpc.codec import Batch
from pagegate.rpc.tls import ServerTls
from pagegate.server import Server, ServerOptions
from pagegate.transfer.backing import MemfdBacking
from pagegate.transfer.keeper import BridgeKind
from pagegate.transfer.region import RegionSpec
from pagegate.v1 import transfer_pb2 as pb

BASELINE = "pagegate.bench.Baseline"
_ACK_EVERY = 4


class Baseline:
    """TransferPages and TransferPage as they would be with nothing to prove and nothing to hide."""

    def __init__(self, pages: int) -> None:
        self._size = pages * eb.PAGE_SIZE
        self._backing = MemfdBacking("baseline", self._size)
        self._page = bytearray(eb.PAGE_SIZE)

    def transfer_pages(self, requests: Iterator[Any], _context: grpc.ServicerContext) -> Iterator[Any]:
        """Takes whole pages, unsealed."""
        fd = self._backing.stage(copy_current=False)
        try:
            with mmap.mmap(fd, self._size) as mapping, memoryview(mapping) as target:
                yield pb.TransferPagesResponse(begun=pb.TransferBegun())
                at = batches = 0
                for message in requests:
                    if not isinstance(message, Batch):
                        continue
                    target[at : at + len(message.records)] = message.records
                    at += len(message.records)
                    batches += 1
                    if batches % _ACK_EVERY == 0:
                        yield pb.TransferPagesResponse(ack=pb.TransferAck(batches=batches))
            yield pb.TransferPagesResponse(committed=pb.TransferCommitted(generation=self._backing.commit()))
        finally:
            os.close(fd)

    def transfer_page(self, request: pb.TransferPageRequest, _context: grpc.ServicerContext) -> Any:
        """Takes one page, unsealed."""
        self._page[:] = request.record
        return pb.TransferPageResponse(generation=1)

    def add_to(self, server: grpc.Server) -> None:
        """Registers both calls."""
        handlers: dict[str, Any] = {
            "TransferPages": grpc.stream_stream_rpc_method_handler(
                self.transfer_pages,
                request_deserializer=codec.decode_request,
                response_serializer=pb.TransferPagesResponse.SerializeToString,
            ),
            "TransferPage": grpc.unary_unary_rpc_method_handler(
                self.transfer_page,
                request_deserializer=pb.TransferPageRequest.FromString,
                response_serializer=pb.TransferPageResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(BASELINE, handlers),))


def _server(directory: Path, pages: int, options: ServerOptions) -> Server:
    return Server(
        platform=platform(directory, SERVER),
        appraiser=appraiser(directory),
        regions=[RegionSpec("book", 1 << 32, pages)],
        options=options,
    )


def main() -> None:
    """Serves until standard input ends."""
    directory, pages = Path(sys.argv[1]), int(sys.argv[2])
    baseline = grpc.server(ThreadPoolExecutor(8), options=CHANNEL_OPTIONS)
    Baseline(pages).add_to(baseline)
    plain = baseline.add_insecure_port("127.0.0.1:0")
    tls = ServerTls(*certificate(directory))
    secured = baseline.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(tls.key, tls.certificate)]))
    baseline.start()
    options = ServerOptions(listen="127.0.0.1:0", ring_socket=directory / "ring")
    isolated = ServerOptions(listen="127.0.0.1:0", bridge=BridgeKind.ISOLATED, ring_socket=directory / "ring-isolated")
    with _server(directory, pages, options) as server, _server(directory, pages, isolated) as confined:
        line = {
            "pid": os.getpid(),
            "bridge_pid": confined.bridge_info.process,
            "pagegate": server.address,
            "isolated": confined.address,
            "plain": f"127.0.0.1:{plain}",
            "tls": f"127.0.0.1:{secured}",
        }
        print(json.dumps(line), flush=True)  # noqa: T201 - this line is the interface
        sys.stdin.read()
    baseline.stop(0)


if __name__ == "__main__":
    main()
