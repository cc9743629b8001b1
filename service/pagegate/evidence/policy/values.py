"""The value types of a policy: byte strings as hex, durations, firmware versions. Each has its JSON Schema."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from pagegate.evidence.snp.report import FirmwareVersion

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = r"^[1-9][0-9]{0,8}[smhd]$"
_VERSION: Final = r"^[0-9]{1,3}\.[0-9]{1,3}(\.[0-9]{1,3})?$"


def _hex_of(*sizes: int) -> Any:
    lengths = " or ".join(str(2 * size) for size in sizes)

    def parse(value: object) -> object:
        if isinstance(value, bytes) and len(value) in sizes:
            return value
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]*", value) or len(value) // 2 not in sizes:
            size = f"{len(value)} characters" if isinstance(value, str) else type(value).__name__
            raise ValueError(f"must be {lengths} hexadecimal digits, found {size}")
        if len(value) % 2:
            raise ValueError(f"must be {lengths} hexadecimal digits, found {len(value)}")
        return bytes.fromhex(value)

    return parse


def _hex_type(*sizes: int) -> Any:
    pattern = "|".join(f"[0-9a-fA-F]{{{2 * size}}}" for size in sizes)
    return (
        BeforeValidator(_hex_of(*sizes)),
        PlainSerializer(lambda value: value.hex(), return_type=str),
        WithJsonSchema({"type": "string", "pattern": f"^({pattern})$"}),
    )


def _parse_duration(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or not re.fullmatch(_DURATION, value):
        raise ValueError("must be a number and a unit: 30s, 5m, 12h or 7d")
    return timedelta(seconds=int(value[:-1]) * _UNITS[value[-1]])


def _parse_version(value: object) -> object:
    if isinstance(value, FirmwareVersion):
        return value
    if not isinstance(value, str) or not re.fullmatch(_VERSION, value):
        raise ValueError('must be a quoted version such as "1.55" or "1.55.29"')
    numbers = [int(number) for number in value.split(".")]
    if max(numbers) > 255:
        raise ValueError("each number of a version is at most 255")
    return FirmwareVersion(numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else 0)


Bytes16 = Annotated[bytes, *_hex_type(16)]
Bytes32 = Annotated[bytes, *_hex_type(32)]
Bytes48 = Annotated[bytes, *_hex_type(48)]
ChipId = Annotated[bytes, *_hex_type(8, 64)]
Duration = Annotated[
    timedelta,
    BeforeValidator(_parse_duration),
    PlainSerializer(lambda value: f"{round(value.total_seconds())}s", return_type=str),
    WithJsonSchema({"type": "string", "pattern": _DURATION}),
]
Version = Annotated[
    FirmwareVersion,
    BeforeValidator(_parse_version),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _VERSION}),
]
