"""The one exception of the binding, made from the bridge's own table of statuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._native import ffi, lib

if TYPE_CHECKING:
    from .results import OpenResult


@dataclass(frozen=True, slots=True)
class StatusInfo:
    """One row of the table: number, stable name (`EB_ERR_REPLAYED`) and text."""

    status: int
    name: str
    text: str


def status_info(status: int) -> StatusInfo:
    """What the bridge says of a status number; an unknown one has the name `EB_ERR_UNKNOWN`."""
    return StatusInfo(status, _text(lib.eb_status_name(status)), _text(lib.eb_status_text(status)))


def all_statuses() -> tuple[StatusInfo, ...]:
    """Every status that the bridge knows, `EB_OK` included."""
    return tuple(status_info(lib.eb_status_at(index)) for index in range(lib.eb_status_count()))


class BridgeStatusError(Exception):
    """A call of the bridge that did not return `EB_OK`.

    `status` is the number, `name` its stable name (`EB_ERR_REPLAYED`), `reason` the name without its
    prefix (`REPLAYED`). `result` is set where a call got part of the way: `Session.open`.
    """

    def __init__(self, status: int, result: OpenResult | None = None) -> None:
        info = status_info(status)
        super().__init__(f"{info.name}: {info.text}")
        self.status = status
        self.name = info.name
        self.reason = info.name.removeprefix("EB_ERR_")
        self.text = info.text
        self.result = result

    def __reduce__(self) -> tuple[type[BridgeStatusError], tuple[int, OpenResult | None]]:
        return type(self), (self.status, self.result)


def check(status: int) -> None:
    """Raise unless `status` is `EB_OK`."""
    if status:
        raise BridgeStatusError(status)


def _text(pointer: object) -> str:
    raw: bytes = ffi.string(pointer)
    return raw.decode("ascii")
