"""Which product line a chip belongs to: its root of trust and the layout of its TCB (57230, 56860 TCB_VERSION)."""

from __future__ import annotations

from enum import StrEnum

FAMILY_ZEN3_ZEN4 = 0x19
FAMILY_ZEN5 = 0x1A
TURIN_CHIP_ID_BYTES = 8
CHIP_ID_BYTES = 64


class Product(StrEnum):
    """AMD's product lines as the KDS names them. Bergamo and Siena use Genoa's root."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"

    @property
    def hwid_bytes(self) -> int:
        """How many bytes of the chip id the chip has; the rest of the report's field is zero."""
        return TURIN_CHIP_ID_BYTES if self is Product.TURIN else CHIP_ID_BYTES

    @property
    def structure_version(self) -> int:
        """structVersion of this line's VCEK and VLEK certificates."""
        return 1 if self is Product.TURIN else 0


_CERTIFIED_AS = {
    "Milan": Product.MILAN,
    "Genoa": Product.GENOA,
    "Bergamo": Product.GENOA,
    "Siena": Product.GENOA,
    "Turin": Product.TURIN,
}


def product_of_cpuid(family: int, model: int) -> Product | None:
    """The line of a CPUID family and model (both with their extended parts added); None when not known."""
    if family == FAMILY_ZEN3_ZEN4:
        if model <= 0x0F:
            return Product.MILAN
        if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF:
            return Product.GENOA
    if family == FAMILY_ZEN5 and model <= 0x11:
        return Product.TURIN
    return None


def product_of_name(name: str) -> Product | None:
    """The line of a certificate's productName such as "Milan-B0"; None when not known."""
    return _CERTIFIED_AS.get(name.partition("-")[0])


def candidate_products(chip_id: bytes) -> tuple[Product, ...]:
    """The lines a version 2 report may come from: only Turin leaves the last 56 bytes of the chip id zero."""
    if any(chip_id) and not any(chip_id[TURIN_CHIP_ID_BYTES:]):
        return (Product.TURIN,)
    return (Product.MILAN, Product.GENOA)
