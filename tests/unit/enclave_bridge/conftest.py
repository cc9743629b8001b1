"""Every test of the handles runs with the bridge in this process and in one of its own."""

from __future__ import annotations

import pytest
from tests.unit.enclave_bridge.pairs import BACKENDS

from enclave_bridge import Bridge


@pytest.fixture(params=BACKENDS, ids=["in-process", "isolated"])
def backend(request: pytest.FixtureRequest) -> type[Bridge]:
    return request.param
