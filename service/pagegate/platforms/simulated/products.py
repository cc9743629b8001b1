"""What differs between AMD's product lines in reports and VCEK certificates.

Sources: SEV Secure Nested Paging Firmware ABI (56860), TCB_VERSION and ATTESTATION_REPORT; VCEK Certificate and
KDS Interface Specification (57230), certificate extensions; each value was compared with real certificates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pagegate.errors import PlatformError

CHIP_ID_BYTES = 64


@dataclass(frozen=True, slots=True)
class Tcb:
    """Security patch levels, each 0..255. `fmc` exists on Turin only and is zero elsewhere."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int = 0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            level = getattr(self, name)
            if not 0 <= level <= 255:
                raise PlatformError(
                    "SIMULATED_TCB_INVALID", f"TCB part {name} is {level}; it is one byte, give a level from 0 to 255"
                )


@dataclass(frozen=True, slots=True)
class Product:
    """One product line as its chips present themselves."""

    name: str
    """The line that KDS and the certificates of the root are named after."""
    cpuid: bytes
    """Family, model and stepping as in the report from version 3 on; 3 bytes."""
    vcek_product_name: str
    struct_version: int
    hwid_bytes: int
    """Length of the certificate's HWID: the leading part of the 64-byte chip id that is not zero."""
    serial_base: int
    """Serial number of the ARK; ASK and ASVK count from it."""
    default_tcb: Tcb

    @property
    def has_fmc(self) -> bool:
        return self.struct_version == 1

    def tcb_bytes(self, tcb: Tcb) -> bytes:
        """TCB_VERSION, 8 bytes in file order."""
        if self.has_fmc:
            return bytes((tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode))
        if tcb.fmc:
            raise PlatformError(
                "SIMULATED_TCB_INVALID", f"{self.name} has no FMC level, found {tcb.fmc}; leave fmc at 0"
            )
        return bytes((tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode))

    def tcb_of(self, levels: bytes) -> Tcb:
        """The reverse of `tcb_bytes`. Raises ValueError for other than 8 bytes."""
        if len(levels) != 8:
            raise ValueError(f"{len(levels)} bytes, a TCB_VERSION has 8")
        if self.has_fmc:
            return Tcb(levels[1], levels[2], levels[3], levels[7], fmc=levels[0])
        return Tcb(levels[0], levels[1], levels[6], levels[7])


PRODUCTS: Mapping[str, Product] = MappingProxyType(
    {
        product.name: product
        for product in (
            Product("Milan", bytes((0x19, 0x01, 0x01)), "Milan-B0", 0, 64, 0x10000, Tcb(4, 0, 24, 219)),
            Product("Genoa", bytes((0x19, 0x11, 0x01)), "Genoa", 0, 64, 0x20000, Tcb(10, 0, 25, 84)),
            Product("Turin", bytes((0x1A, 0x02, 0x01)), "Turin", 1, 8, 0x30000, Tcb(1, 0, 2, 71)),
        )
    }
)


def product_named(name: str) -> Product:
    """Returns the product line called `name`. Raises PlatformError SIMULATED_PRODUCT_UNKNOWN."""
    try:
        return PRODUCTS[name]
    except KeyError:
        raise PlatformError(
            "SIMULATED_PRODUCT_UNKNOWN", f"no simulated product {name!r}; choose one of {', '.join(PRODUCTS)}"
        ) from None
