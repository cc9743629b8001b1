"""TCB_VERSION: eight security version numbers, compared part by part, never as one integer (56860, TCB_VERSION)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from pagegate.evidence.snp.product import Product

TCB_BYTES = 8
_MILAN_GENOA = ("bootloader", "tee", "spl4", "spl5", "spl6", "spl7", "snp", "microcode")
_TURIN = ("fmc", "bootloader", "tee", "snp", "spl5", "spl6", "spl7", "microcode")
PART_NAMES = ("fmc", "bootloader", "tee", "snp", "microcode")
"""Every part that has a meaning on some product; spl4 to spl7 are reserved."""


def layout(product: Product) -> tuple[str, ...]:
    """Names of the eight parts in file order; those that begin with "spl" are reserved."""
    return _TURIN if product is Product.TURIN else _MILAN_GENOA


@dataclass(frozen=True, slots=True)
class Tcb:
    """One TCB_VERSION of one product. Has no order of its own: use `below`."""

    product: Product
    parts: Mapping[str, int]
    """All eight parts by name, the reserved ones too."""

    @classmethod
    def from_bytes(cls, product: Product, data: bytes) -> Tcb:
        """Reads the 8 bytes as they are in a report."""
        return _read(product, data)

    def to_bytes(self) -> bytes:
        """The 8 bytes in file order."""
        return bytes(self.parts.get(name, 0) for name in layout(self.product))

    def below(self, floor: Mapping[str, int]) -> tuple[str, ...]:
        """Names of the parts that are lower than in `floor`; a part not named in `floor` is not compared."""
        return tuple(name for name, least in floor.items() if self.parts.get(name, -1) < least)

    @property
    def reserved(self) -> tuple[int, ...]:
        """The parts that have no meaning on this product and must be zero."""
        return tuple(value for name, value in self.parts.items() if name.startswith("spl"))

    def named(self) -> dict[str, int]:
        """The parts that have a meaning on this product."""
        return {name: value for name, value in self.parts.items() if not name.startswith("spl")}

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.parts.items() if value or not name.startswith("spl"))


@lru_cache(maxsize=1024)
def _read(product: Product, data: bytes) -> Tcb:
    """A fleet has few TCBs, and an appraisal reads each several times."""
    if len(data) != TCB_BYTES:
        raise ValueError(f"a TCB_VERSION has {TCB_BYTES} bytes, got {len(data)}")
    return Tcb(product, MappingProxyType(dict(zip(layout(product), data, strict=True))))
