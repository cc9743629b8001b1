"""One byte string for one value: the subset of RFC 8785 (JCS) that audit entries need.

Object keys are ASCII and sorted, integers stay inside the range every JSON reader holds exactly,
there are no floats, and nothing is escaped that need not be. For such values this is exactly JCS.
"""

from __future__ import annotations

import json
from typing import Any

MAX_INTEGER = 2**53 - 1
"""Largest magnitude that survives a reader with 64-bit floats (RFC 8785, section 3.2.2.3)."""


def canonical_json(value: object) -> bytes:
    """Returns the canonical UTF-8 form. Raises ValueError for values outside the subset."""
    _check(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def parse_canonical(data: bytes) -> Any:
    """Parses `data` and refuses it (ValueError) unless it is the canonical form of what it says."""
    try:
        value = json.loads(data)
        again = canonical_json(value)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if again != data:
        raise ValueError("not in canonical form")
    return value


def _check(value: object) -> None:
    if value is None or isinstance(value, (bool, str)):
        return
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ValueError(f"integer {value} is outside +/-{MAX_INTEGER}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not (isinstance(key, str) and key.isascii()):
                raise ValueError(f"object key {key!r} is not ASCII text")
            _check(item)
    else:
        raise ValueError(f"{type(value).__name__} has no canonical form")
