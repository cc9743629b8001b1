"""Fixtures of the endorsement tests that start processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from endorsement_support import vectors
from endorsement_support.kds import FakeKds
from pagegate.endorsements import chain_part
from pagegate.endorsements.part import PRODUCTS
from pagegate.evidence.model import KeyKind


@pytest.fixture
def kds() -> Iterator[FakeKds]:
    """A KDS that has every real VCEK of the vectors, and the chains."""
    with FakeKds() as server:
        for leaf in vectors.leaves():
            server.add_leaf(leaf.body)
        for product in PRODUCTS:
            for kind in KeyKind:
                server.add(chain_part(product, kind), vectors.chain_pem(product, kind))
        yield server


@pytest.fixture
def cache_path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "endorsements.db"
