"""Simulated roots shared by the tests of one run (RSA-4096 keys take seconds), and where real vectors are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pagegate.platforms.simulated import SimulatedRoot


@pytest.fixture(scope="session")
def simulated_root(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SimulatedRoot]:
    """Opens the one root of this run for a product."""
    home = tmp_path_factory.mktemp("roots")

    def open_root(product: str = "Milan") -> SimulatedRoot:
        return SimulatedRoot.open_or_create(home / product, product=product, progress=lambda _: None)

    return open_root


@pytest.fixture(scope="session")
def snp_vectors() -> Path:
    """The folder of real SEV-SNP vectors."""
    repository = Path(__file__).parents[3]
    named = os.environ.get("PAGEGATE_VECTORS")
    # Beside the repository; a worktree lies one level deeper.
    places = [Path(named)] if named else [up / "shared" / "vectors" for up in repository.parents[:2]]
    for place in places:
        if (place / "sev-snp").is_dir():
            return place / "sev-snp"
    pytest.skip(f"no vectors in {', '.join(map(str, places))}; set PAGEGATE_VECTORS")
