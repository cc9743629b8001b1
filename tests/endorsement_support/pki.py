"""A hierarchy in AMD's formats with keys of our own, for what the real vectors lack: CRLs, any TCB, any date."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from pagegate.endorsements.part import PRODUCTS, tcb_levels
from pagegate.evidence.model import EndorsementRequest, KeyKind

BASIC_CONSTRAINTS = "2.5.29.19"
AMD = "1.3.6.1.4.1.3704.1"
SPL_OID = {"bl": 1, "tee": 2, "snp": 3, "spl4": 4, "spl5": 5, "spl6": 6, "spl7": 7, "ucode": 8, "fmc": 9}
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
START = datetime(2026, 1, 1, tzinfo=UTC)
YEAR = timedelta(days=365)

MILAN_TCB = bytes.fromhex("04000000000018db")
CHIP = bytes(range(1, 65))


def name(common_name: str) -> x509.Name:
    """A subject or issuer."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def certificate(
    subject: str,
    issuer: str,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    signer: rsa.RSAPrivateKey,
    *,
    extensions: list[tuple[str, bytes]] | None = None,
    not_before: datetime = START,
    not_after: datetime = START + 20 * YEAR,
) -> bytes:
    """A DER certificate signed as AMD signs."""
    builder = x509.CertificateBuilder(name(issuer), name(subject), key, 7, not_before, not_after)
    for oid, value in extensions or [(BASIC_CONSTRAINTS, bytes.fromhex("30030101ff"))]:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    return builder.sign(signer, hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)


def integer(value: int) -> bytes:
    """DER INTEGER of 0..255."""
    return bytes([2, 1, value]) if value < 0x80 else bytes([2, 2, 0, value])


def leaf_extensions(product: str, tcb: bytes, *, hwid: bytes | None, csp_id: str | None) -> list[tuple[str, bytes]]:
    """The extensions of a VCEK or VLEK."""
    found = [(f"{AMD}.1", integer(0)), (f"{AMD}.2", b"\x16" + bytes([len(product)]) + product.encode())]
    found += [(f"{AMD}.3.{SPL_OID[part]}", integer(level)) for part, level in tcb_levels(product, tcb).items()]
    if hwid is not None:
        found.append((f"{AMD}.4", hwid))
    if csp_id is not None:
        found.append((f"{AMD}.5", b"\x16" + bytes([len(csp_id)]) + csp_id.encode()))
    return found


@dataclass
class Hierarchy:
    """ARK, ASK and ASVK of one product. Keys are 2048 bits, for speed; real ones have 4096."""

    product: str = "Milan"
    ark_key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    sub_key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    _made: dict[object, bytes] = field(default_factory=dict)
    """Authorities and CRLs as first made: signatures are randomised."""

    @property
    def ark(self) -> bytes:
        """The root."""
        ark = f"ARK-{self.product}"
        return self._once("ark", lambda: certificate(ark, ark, self.ark_key.public_key(), self.ark_key))

    def intermediate(self, kind: KeyKind = KeyKind.VCEK) -> bytes:
        """ASK or ASVK."""
        subject = f"SEV-VLEK-{self.product}" if kind is KeyKind.VLEK else f"SEV-{self.product}"
        return self._once(
            kind, lambda: certificate(subject, f"ARK-{self.product}", self.sub_key.public_key(), self.ark_key)
        )

    def chain_pem(self, kind: KeyKind = KeyKind.VCEK) -> bytes:
        """As KDS gives it."""
        ders = (self.intermediate(kind), self.ark)
        return b"".join(x509.load_der_x509_certificate(d).public_bytes(Encoding.PEM) for d in ders)

    def leaf(
        self,
        *,
        kind: KeyKind = KeyKind.VCEK,
        tcb: bytes = MILAN_TCB,
        hwid: bytes = CHIP,
        not_before: datetime = START,
        not_after: datetime = START + 7 * YEAR,
        signer: rsa.RSAPrivateKey | None = None,
        extensions: list[tuple[str, bytes]] | None = None,
    ) -> bytes:
        """A VCEK or VLEK."""
        vlek = kind is KeyKind.VLEK
        if extensions is None:
            extensions = leaf_extensions(
                self.product, tcb, hwid=None if vlek else hwid, csp_id="CN=test" if vlek else None
            )
        return certificate(
            "SEV-VLEK" if vlek else "SEV-VCEK",
            f"SEV-VLEK-{self.product}" if vlek else f"SEV-{self.product}",
            ec.generate_private_key(ec.SECP384R1()).public_key(),
            signer or self.sub_key,
            extensions=extensions,
            not_before=not_before,
            not_after=not_after,
        )

    def crl(
        self,
        *,
        this_update: datetime = START,
        next_update: datetime | None = START + 3 * YEAR,
        signer: rsa.RSAPrivateKey | None = None,
        issuer: str = "",
    ) -> bytes:
        """A CRL of the ARK, DER."""
        builder = x509.CertificateRevocationListBuilder(name(issuer or f"ARK-{self.product}"), this_update, next_update)
        return self._once(
            (this_update, next_update, signer, issuer),
            lambda: builder.sign(signer or self.ark_key, hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER),
        )

    def request(
        self, *, kind: KeyKind = KeyKind.VCEK, tcb: bytes = MILAN_TCB, chip: bytes = CHIP
    ) -> EndorsementRequest:
        """The request that `leaf` answers."""
        assert self.product in PRODUCTS
        return EndorsementRequest(self.product, kind, bytes(64) if kind is KeyKind.VLEK else chip.ljust(64, b"\0"), tcb)

    def _once(self, key: object, make: Callable[[], bytes]) -> bytes:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
