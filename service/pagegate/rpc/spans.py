"""One gRPC call as OpenTelemetry's conventions want it: a span named by the method, and its duration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import grpc
from google.rpc import code_pb2

import enclave_bridge as eb
from pagegate.errors import PagegateError
from pagegate.rpc.errors import to_status
from pagegate.telemetry import Attributes, Span, SpanKind, TraceContext, Tracing, rpc_attributes

_FIRST_BATCHES, _EACH_BATCH = 4, 32


@contextmanager
def call_span(telemetry: Tracing, method: str, kind: SpanKind, parent: TraceContext | None = None) -> Iterator[Span]:
    """The span of one call of `method` ("package.Service/Method"), "client" or "server"; timed by its status."""
    attributes = rpc_attributes(method)
    status, started = "OK", time.monotonic()
    with telemetry.span(method, attributes, kind=kind, parent=parent) as span:
        try:
            yield span
        except PagegateError as error:
            status = _status(error)
            raise
        except grpc.RpcError as error:
            status = error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
            raise
        except GeneratorExit:
            status = "CANCELLED"
            raise
        except BaseException:
            status = "UNKNOWN"
            raise
        finally:
            labels = {**attributes, "rpc.response.status_code": status}
            span.set({"rpc.response.status_code": status})
            telemetry.record(f"rpc.{kind}.call.duration", time.monotonic() - started, labels)


@dataclass(slots=True)
class Batches:
    """The batches of one stream: hops timed in C, inside the call that carries them and linked to the hop in which their
    transfer began, since a resumed transfer has more than one call. A context manager: what is not counted yet is then.

    The first ones of a stream are noted and then each 32nd, and pages are counted as seldom: between two batches the
    processor has other things in its caches, so that each look at telemetry costs far more than in a loop of its own.
    """

    telemetry: Tracing
    operation: Literal["seal", "open"]
    call: TraceContext | None
    transfer: TraceContext | None
    crossed: Attributes | None = None
    """Labels under which pages are counted; None counts none."""
    where: Attributes | None = None
    """Which bridge."""
    number: int = 0
    """Batches so far in this stream."""
    uncounted: int = 0
    """Pages."""

    def __call__(self, pages: int, nanoseconds: int) -> None:
        """Hears of each batch."""
        number, self.number = self.number, self.number + 1
        self.uncounted += pages
        if number >= _FIRST_BATCHES and number % _EACH_BATCH:
            return
        self.telemetry.timed_span(
            f"pagegate.bridge.{self.operation}",
            {"pagegate.pages": pages, "pagegate.batch.number": number, **(self.where or {})},
            nanoseconds=nanoseconds,
            parent=self.call,
            links=() if self.transfer is None else (self.transfer,),
        )
        operation = {"pagegate.bridge.operation": self.operation}
        self.telemetry.record("pagegate.bridge.duration", nanoseconds / 1e9, operation)
        self._count()

    def _count(self) -> None:
        if self.crossed is not None and self.uncounted:
            self.telemetry.count("pagegate.pages", self.uncounted, self.crossed)
            self.telemetry.count("pagegate.bytes", self.uncounted * eb.PAGE_SIZE, self.crossed)
        self.uncounted = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count()


def _status(error: PagegateError) -> str:
    """What the peer answered, or what it will be answered."""
    cause = error.__cause__
    return str(cause.code().name if isinstance(cause, grpc.Call) else code_pb2.Code.Name(to_status(error).code))
