"""Bytes from a store become facts or are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagegate.audit.canonical import canonical_json
from pagegate.audit.entry import MAX_ENTRY_BYTES, Row, parse_body, parse_entry, parse_head, parse_state

_GOOD = {
    "details": {},
    "kind": "grant",
    "prev": "00" * 32,
    "seq": 1,
    "subject": "s",
    "time": "2025-01-02T03:04:05.000006Z",
}
_HEAD = {"format": 1, "hash": "00" * 32, "log": "00" * 16, "seq": 0, "time": "2025-01-02T03:04:05.000006Z"}


def test_parse_body_when_good_then_gives_its_parts() -> None:
    seq, time, kind, subject, details, prev = parse_body(canonical_json(_GOOD))
    assert (seq, time.microsecond, kind, subject, details, prev) == (1, 6, "grant", "s", {}, bytes(32))


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 0},
        {"seq": True},
        {"seq": "1"},
        {"kind": 1},
        {"details": []},
        {"prev": "00"},
        {"prev": "zz" * 32},
        {"time": "yesterday"},
        {"time": 1},
        {"extra": 1},
        {"subject": "x" * MAX_ENTRY_BYTES},
    ],
)
def test_parse_body_when_a_field_is_wrong_then_refuses(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any ValueError is the contract
        parse_body(canonical_json({**_GOOD, **change}))


@given(st.binary(max_size=200))
def test_parse_body_when_bytes_are_random_then_raises_value_error_only(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any ValueError is the contract
        parse_body(data)


def test_parse_entry_when_stored_under_another_number_then_refuses() -> None:
    with pytest.raises(ValueError, match="says it is 1"):
        parse_entry(Row(2, canonical_json(_GOOD), bytes(32), bytes(64)))


@pytest.mark.parametrize(
    ("change", "signature"), [({"format": 2}, bytes(64)), ({}, bytes(63)), ({"seq": -1}, bytes(64))]
)
def test_parse_head_when_wrong_then_refuses(change: dict[str, object], signature: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any ValueError is the contract
        parse_head(canonical_json({**_HEAD, **change}), signature)


def test_parse_state_when_lengths_are_wrong_then_refuses() -> None:
    with pytest.raises(ValueError, match="length"):
        parse_state(bytes(15), bytes(32), canonical_json(_HEAD), bytes(64))
