"""What is fetched, cached and looked up as one thing: a leaf, a chain or a revocation list."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pagegate.endorsements.certificate import amd_extensions
from pagegate.errors import EndorsementError
from pagegate.evidence.model import EndorsementRequest, KeyKind
from pagegate.evidence.snp.certificate import Certificate

PRODUCTS = ("Milan", "Genoa", "Turin")
"""The KDS product lines; Bergamo and Siena have Genoa's certificates."""

_LAYOUT = {
    "Milan": ("bl", "tee", "spl4", "spl5", "spl6", "spl7", "snp", "ucode"),
    "Genoa": ("bl", "tee", "spl4", "spl5", "spl6", "spl7", "snp", "ucode"),
    "Turin": ("fmc", "bl", "tee", "snp", "spl5", "spl6", "spl7", "ucode"),
}
"""TCB bytes in file order (56860, TCB_VERSION; family 1Ah has the second layout)."""

_SHORT = {"bootloader": "bl", "microcode": "ucode"}
"""Part of the TCB as the certificate's parser names it -> as KDS does, where they differ."""

TCB_PARTS = ("fmc", "bl", "tee", "snp", "ucode")


class PartKind(StrEnum):
    """The three things that make up a report's endorsements."""

    LEAF = "leaf"
    CHAIN = "chain"
    CRL = "crl"


@dataclass(frozen=True, slots=True)
class Part:
    """Names one thing to fetch or store. `hwid` and `tcb` are empty but for a leaf; `hwid` also for a VLEK."""

    kind: PartKind
    product: str
    key_kind: KeyKind
    hwid: bytes = b""
    tcb: bytes = b""

    @property
    def key(self) -> str:
        """Unique text, stable across versions: product and key kind come first, so chains never mix."""
        return "/".join(
            s for s in (self.key_kind.value, self.product, self.kind.value, self.hwid.hex(), self.tcb.hex()) if s
        )

    def __str__(self) -> str:
        if self.kind is not PartKind.LEAF:
            return f"{self.product} {self.key_kind.upper()} {'CRL' if self.kind is PartKind.CRL else 'chain'}"
        chip = f" of chip {self.hwid[:8].hex()}.." if self.hwid else ""
        return f"{self.product} {self.key_kind.upper()}{chip} for TCB {format_tcb(self.product, self.tcb)}"


def leaf_part(request: EndorsementRequest) -> Part:
    """The leaf that `request` needs. Raises EndorsementError when no such leaf can exist."""
    product = check_product(request.product)
    tcb = bytes(request.reported_tcb)
    if len(tcb) != 8:
        raise _unusable(f"reported TCB of {len(tcb)} bytes, expected 8")
    if any(value for name, value in tcb_levels(product, tcb).items() if name not in TCB_PARTS):
        raise _unusable(f"reported TCB {tcb.hex()} has reserved bytes set for {product}; is the product right?")
    if request.kind is KeyKind.VLEK:
        return Part(PartKind.LEAF, product, request.kind, b"", tcb)
    return Part(PartKind.LEAF, product, request.kind, _hwid(request), tcb)


def chain_part(product: str, kind: KeyKind) -> Part:
    """ASK or ASVK, and ARK."""
    return Part(PartKind.CHAIN, check_product(product), kind)


def crl_part(product: str, kind: KeyKind) -> Part:
    """The revocation list that the ARK signs."""
    return Part(PartKind.CRL, check_product(product), kind)


def part_of_leaf(leaf: Certificate, product: str) -> Part:
    """Which leaf a certificate says it is: its extensions decide, not its name (57230, table of OIDs)."""
    says = amd_extensions(leaf)
    if (says.hwid is None) == (says.csp_id is None):
        raise _unusable("the leaf has both or neither of HWID (VCEK) and CSP_ID (VLEK)")
    kind = KeyKind.VLEK if says.hwid is None else KeyKind.VCEK
    layout = _LAYOUT[product]
    spl = {_SHORT.get(name, name): level for name, level in says.spl.items()}
    if missing := [name for name in layout if name not in spl]:
        raise _unusable(f"the {product} {kind.upper()} lacks the patch levels {', '.join(missing)}")
    hwid = says.hwid or b""
    if hwid and len(hwid) != hwid_length(product):
        raise _unusable(f"HWID of {len(hwid)} bytes, {product} has {hwid_length(product)}")
    return Part(PartKind.LEAF, product, kind, hwid, bytes(spl[name] for name in layout))


def tcb_levels(product: str, tcb: bytes) -> dict[str, int]:
    """Part -> level, by the product's layout."""
    return dict(zip(_LAYOUT[product], tcb, strict=True))


def pack_tcb(product: str, levels: dict[str, int]) -> bytes:
    """The 8 bytes in file order from levels by part; parts not named are 0."""
    return bytes(levels.get(name, 0) for name in _LAYOUT[product])


def format_tcb(product: str, tcb: bytes) -> str:
    """For people: `bl=4 tee=0 snp=24 ucode=219`."""
    levels = tcb_levels(product, tcb)
    return " ".join(f"{name}={levels[name]}" for name in TCB_PARTS if name in levels)


def hwid_length(product: str) -> int:
    """Bytes of the chip id that name the chip (56860, CHIP_ID; 8 from family 1Ah on)."""
    return 8 if product == "Turin" else 64


def check_product(product: str) -> str:
    """Returns `product` when it is a KDS product line."""
    if product not in PRODUCTS:
        raise _unusable(f"product {product[:32]!r} is not one of {', '.join(PRODUCTS)}")
    return product


def _hwid(request: EndorsementRequest) -> bytes:
    chip_id = bytes(request.chip_id)
    if len(chip_id) != 64:
        raise _unusable(f"chip id of {len(chip_id)} bytes, expected 64")
    if not any(chip_id):
        raise EndorsementError(
            "ENDORSEMENT_CHIP_MASKED",
            "the report's chip id is masked (all zero), so no VCEK can be looked up by it; take the VCEK from the "
            "certificate table of the extended report (the hypervisor must fill it), from the host's operator, or "
            "switch MASK_CHIP_ID off on the host",
        )
    length = hwid_length(request.product)
    if any(chip_id[length:]):
        raise _unusable(f"chip id has bytes set after the first {length}, which {request.product} never has")
    return chip_id[:length]


def _unusable(what: str) -> EndorsementError:
    return EndorsementError("ENDORSEMENT_REQUEST_INVALID", what)
