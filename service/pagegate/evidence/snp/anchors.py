"""Whom we trust: AMD's root keys, pinned by the digest of their certificates."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from pagegate.evidence.snp.product import Product

_ARK_DIGESTS = (
    (Product.MILAN, "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"),
    (Product.GENOA, "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"),
    (Product.TURIN, "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"),
)


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """One root that may end a chain, for one product line."""

    product: Product
    ark_digest: bytes
    """SHA-256 of the root certificate's DER."""
    simulated: bool = False
    """True for the root of a simulated platform: what chains to it proves nothing."""


def amd_anchors() -> tuple[TrustAnchor, ...]:
    """AMD's roots, the only ones built in."""
    return tuple(TrustAnchor(product, bytes.fromhex(digest)) for product, digest in _ARK_DIGESTS)


def simulated_anchor(product: Product | str, ark: bytes) -> TrustAnchor:
    """The anchor of a simulated platform's root certificate (DER). Refused unless the appraiser allows it."""
    return TrustAnchor(Product(product), sha256(ark).digest(), simulated=True)


def amd_certificates() -> tuple[bytes, ...]:
    """AMD's ARK, ASK and ASVK certificates (DER) that are shipped, so that offline only the leaf is needed.

    They are untrusted input like any other certificate; only the digests above make a root.
    """
    folder = files("pagegate.evidence.snp") / "amd"
    names = (f"{product.lower()}-{kind}.der" for product in Product for kind in ("ark", "ask", "asvk"))
    return tuple((folder / name).read_bytes() for name in names)
