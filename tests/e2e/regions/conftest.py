"""Whole servers, with their keys in this process and in one of its own."""

import pytest

from pagegate.transfer.keeper import BridgeKind


@pytest.fixture(params=list(BridgeKind))
def bridge_kind(request: pytest.FixtureRequest) -> BridgeKind:
    return BridgeKind(request.param)
