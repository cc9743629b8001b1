"""A short run of every fuzz target; `fuzz_evidence.py` runs them for long, by coverage."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vectors import needs_vectors

sys.path.insert(0, str(Path(__file__).resolve().parent))
from targets import TARGETS, bases, mutated  # type: ignore[import-not-found]

pytestmark = needs_vectors

SHORT = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
EDIT = st.tuples(st.integers(0, 2**16 - 1), st.integers(1, 255))


@pytest.mark.parametrize("name", sorted(TARGETS))
@SHORT
@given(data=st.binary(max_size=1400))
@example(data=b"")
def test_target_when_given_any_bytes_then_no_finding(name: str, data: bytes) -> None:
    TARGETS[name](data)


@SHORT
@given(which=st.integers(0, 255), edits=st.lists(EDIT, min_size=1, max_size=6))
def test_report_when_edited_anywhere_then_never_accepted_as_another(which: int, edits: list[tuple[int, int]]) -> None:
    packed = b"".join(offset.to_bytes(2, "big") + bytes([xor]) for offset, xor in edits)
    TARGETS["appraise"](bytes([which]) + packed)


@SHORT
@given(which=st.integers(0, 255), edits=st.lists(EDIT, min_size=1, max_size=6))
def test_certificate_when_edited_anywhere_then_never_accepted(which: int, edits: list[tuple[int, int]]) -> None:
    packed = b"".join(offset.to_bytes(2, "big") + bytes([xor]) for offset, xor in edits)
    TARGETS["appraise_certificate"](bytes([which]) + packed)


YAML = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.sampled_from(["a", "*", "1.55", "5m", "00" * 48])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["version", "identities", "name", "measurements", "tcb", "Milan", "reported", "snp", "regions"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@SHORT
@given(document=YAML)
def test_policy_when_any_yaml_of_its_words_then_no_finding(document: object) -> None:
    import yaml

    TARGETS["policy"](yaml.safe_dump(document).encode())


def test_edits_when_none_then_the_original_is_left() -> None:
    assert mutated(bases()[0].report, b"") == bases()[0].report
