"""Real evidence, kept outside of the repository: $PAGEGATE_VECTORS, or ../shared/vectors beside it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
_HERE = (ROOT.parent / "shared/vectors", ROOT.parent.parent / "shared/vectors")


def folder() -> Path:
    """Where the vectors are; a path that does not exist when they are not to be had."""
    if given := os.environ.get("PAGEGATE_VECTORS"):
        return Path(given)
    return next((path for path in _HERE if path.is_dir()), _HERE[0])


needs_vectors = pytest.mark.skipif(
    not folder().is_dir(), reason=f"no vectors at {folder()}; name their folder by PAGEGATE_VECTORS"
)


@dataclass(frozen=True)
class SnpVector:
    """One folder of sev-snp with a report."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def expected(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "expected.json").read_text())
        return found

    @property
    def report(self) -> bytes:
        return (self.path / "report.bin").read_bytes()

    @property
    def leaf_path(self) -> Path | None:
        return self.path / self.expected["cert"]["file"] if "cert" in self.expected else None

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """The leaf alone: pagegate ships AMD's authorities."""
        return (self.leaf_path.read_bytes(),) if self.leaf_path is not None else ()


def snp_vectors(*, genuine: bool | None = None) -> list[SnpVector]:
    """All reports; those that verify (`genuine`), or those that cannot be checked (not `genuine`)."""
    found = [SnpVector(path.parent) for path in sorted((folder() / "sev-snp").glob("*/report.bin"))]
    return [one for one in found if genuine is None or bool(one.expected["signature_verifies"]) is genuine]
