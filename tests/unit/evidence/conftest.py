"""The lab that makes evidence for these tests, on the keys of the run's one simulated root."""

from __future__ import annotations

import pytest

from pagegate.evidence.model import KeyKind
from pagegate.platforms.simulated import SimulatedRoot
from support.snp import Case, SnpLab


@pytest.fixture(scope="session")
def lab(simulated_root: SimulatedRoot) -> SnpLab:
    """RSA-4096 keys take seconds to make, so the simulated root's are borrowed."""
    simulated_root.chip("for-the-asvk-key", kind=KeyKind.VLEK)
    return SnpLab(simulated_root._directory)


@pytest.fixture
def milan(lab: SnpLab) -> Case:
    """Milan, VCEK, version 3: right in everything."""
    return lab.case()
