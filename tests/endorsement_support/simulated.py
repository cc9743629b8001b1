"""A KDS for the simulated root."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from endorsement_support.kds import FakeKds
from pagegate.endorsements import chain_part, crl_part
from pagegate.evidence.model import KeyKind
from pagegate.platforms.simulated import SimulatedChip, SimulatedRoot


def serve_root(kds: FakeKds, root: SimulatedRoot, *chips: SimulatedChip) -> None:
    """Has `kds` give the root's chain and CRL, and the VCEKs of these chips at their TCBs."""
    product, ders = root.product.name, (root.ask_der, root.ark_der)
    pem = b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders)
    kds.add(chain_part(product, KeyKind.VCEK), pem)
    kds.add(crl_part(product, KeyKind.VCEK), root.crl_der)
    for chip in chips:
        kds.add_leaf(chip.certificates[0])
