"""The canonical form: one value, one byte string."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagegate.audit.canonical import MAX_INTEGER, canonical_json, parse_canonical

_text = st.text(st.characters(exclude_categories=["Cs"]))
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | _text,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(max_codepoint=127)), inner),
    max_leaves=20,
)


@given(_values)
def test_canonical_json_when_parsed_again_then_gives_the_value_and_the_bytes(value: object) -> None:
    data = canonical_json(value)
    assert parse_canonical(data) == value
    assert canonical_json(json.loads(data)) == data


def test_canonical_json_when_given_the_strings_of_rfc_8785_then_escapes_as_it_says() -> None:
    # RFC 8785, section 3.2.2: the "string" member of the sample object.
    value = {"string": "\u20ac$\u000f\nA'\u0042\u0022\u005c\\\"/"}
    assert canonical_json(value) == b'{"string":"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'


def test_canonical_json_when_keys_come_in_any_order_then_sorts_them() -> None:
    assert canonical_json({"b": 1, "a": [True, None, "x"]}) == b'{"a":[true,null,"x"],"b":1}'


@pytest.mark.parametrize(
    "value", [1.5, float("nan"), b"x", 2**53, -(2**53), {"\u00e9": 1}, {1: 2}, "\ud800", [object()]]
)
def test_canonical_json_when_value_has_no_exact_form_then_refuses(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any ValueError is the contract
        canonical_json(value)


@pytest.mark.parametrize(
    "data",
    [b'{"a": 1}', b'{"b":1,"a":2}', b'{"a":1,"a":1}', b"1e3", b"01", b'"\\u0041"', b"", b"\xff", b"[" * 100_000],
)
def test_parse_canonical_when_another_form_of_json_then_refuses(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any ValueError is the contract
        parse_canonical(data)
