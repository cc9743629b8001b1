"""Makes SEV-SNP evidence of any shape, right or wrong in one place, with a root of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from pagegate.errors import EndorsementError
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.model import EndorsementRequest, Endorsements, Evidence, EvidenceType, KeyKind, Verdict
from pagegate.evidence.policy import Policy, parse_policy
from pagegate.evidence.snp.anchors import TrustAnchor
from pagegate.evidence.snp.certificate import (
    OID_BASIC_CONSTRAINTS,
    OID_CSP_ID,
    OID_HWID,
    OID_KEY_USAGE,
    OID_PRODUCT_NAME,
    OID_SPL,
    OID_STRUCT_VERSION,
)
from pagegate.evidence.snp.product import Product
from pagegate.evidence.snp.report import Report, encode_signature
from pagegate.evidence.snp.tcb import layout

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
CPUID = {Product.MILAN: (0x19, 0x01, 1), Product.GENOA: (0x19, 0x11, 1), Product.TURIN: (0x1A, 0x02, 1)}
LEVELS = {"fmc": 1, "bootloader": 4, "tee": 1, "snp": 24, "microcode": 219}
CSP_ID = "CN=provider.test"
MEASUREMENT = bytes(range(48))
_CA = bytes.fromhex("30030101ff")
_CA_PATH_0 = bytes.fromhex("30060101ff020100")
_MAY_SIGN_BOTH = bytes.fromhex("03020106")
_MAY_SIGN_CERTIFICATES = bytes.fromhex("03020204")
PSS = padding.PSS(padding.MGF1(SHA384()), 48)

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def integer(value: int) -> bytes:
    """A DER INTEGER of 0 to 255."""
    return bytes((2, 1, value)) if value < 128 else bytes((2, 2, 0, value))


def text(value: str) -> bytes:
    """A DER IA5String."""
    return bytes((22, len(value))) + value.encode()


@dataclass(frozen=True)
class Spec:
    """One certificate to make; `dataclasses.replace` makes it wrong."""

    subject: str
    issuer: str
    key: PrivateKey
    signer: rsa.RSAPrivateKey
    extensions: dict[str, tuple[bool, bytes]]
    serial: int = 7
    not_before: datetime = NOW - timedelta(days=100)
    not_after: datetime = NOW + timedelta(days=1000)
    pss: padding.PSS = field(default_factory=lambda: PSS)
    hash: HashAlgorithm = field(default_factory=SHA384)

    def der(self) -> bytes:
        """The certificate, signed."""
        builder = x509.CertificateBuilder().subject_name(_name(self.subject)).issuer_name(_name(self.issuer))
        builder = builder.public_key(self.key.public_key()).serial_number(self.serial)
        builder = builder.not_valid_before(self.not_before).not_valid_after(self.not_after)
        for oid, (critical, value) in self.extensions.items():
            builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical)
        signed = builder.sign(self.signer, self.hash, rsa_padding=self.pss)  # type: ignore[arg-type]
        return signed.public_bytes(Encoding.DER)

    def without(self, oid: str) -> Spec:
        """The same without an extension."""
        return replace(self, extensions={one: value for one, value in self.extensions.items() if one != oid})

    def having(self, oid: str, value: bytes, *, critical: bool = False) -> Spec:
        """The same with an extension set."""
        return replace(self, extensions={**self.extensions, oid: (critical, value)})


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@dataclass(frozen=True)
class Source:
    """An EndorsementSource that has what it is given, and remembers what it was asked."""

    leaf: bytes | None = None
    chain: tuple[bytes, ...] = ()
    crl: bytes | None = None
    asked: list[EndorsementRequest] = field(default_factory=list)

    def find(self, request: EndorsementRequest) -> Endorsements:
        self.asked.append(request)
        if request.need_leaf and self.leaf is None:
            raise EndorsementError("ENDORSEMENT_NOT_FOUND", "nothing here")
        return Endorsements(self.leaf, self.chain, self.crl, "test")


@dataclass(frozen=True)
class Case:
    """A report, its chain and the appraiser's world. `but` changes any of it; `verdict` judges."""

    lab: SnpLab
    product: Product
    kind: KeyKind
    report: Report
    root: Spec
    issuer: Spec
    leaf: Spec
    simulated: bool = False
    source: Source = field(default_factory=Source)
    policy: Policy | None = None
    extra: tuple[bytes, ...] = ()
    attachments: dict[str, bytes] = field(default_factory=dict)
    allow_simulated: bool = False
    pinned: bool = True
    send_leaf: bool = True

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def but_report(self, **changes: Any) -> Case:
        return replace(self, report=replace(self.report, **changes))

    def under(self, policy: str) -> Case:
        return replace(self, policy=parse_policy(policy.encode()))

    @property
    def report_bytes(self) -> bytes:
        """The report, signed by the leaf's key."""
        assert isinstance(self.leaf.key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(self.leaf.key.sign(self.report.signed_bytes, ec.ECDSA(SHA384())))
        return replace(self.report, signature=encode_signature(r, s)).to_bytes()

    @property
    def certificates(self) -> tuple[bytes, ...]:
        leaf = (self.leaf.der(),) if self.send_leaf else ()
        return (*leaf, self.issuer.der(), self.root.der(), *self.extra)

    @property
    def evidence(self) -> Evidence:
        return Evidence(EvidenceType.SEV_SNP, self.report_bytes, self.certificates, self.attachments)

    def appraiser(self, evidence: Evidence) -> EvidenceAppraiser:
        """An appraiser that pins the root in `evidence`."""
        anchors: tuple[TrustAnchor, ...] = ()
        if self.pinned:  # by digest: signatures are randomised, so it must be the very root that is sent
            anchors = (TrustAnchor(self.product, sha256(self._root_in(evidence)).digest(), self.simulated),)
        return EvidenceAppraiser(
            self.policy, anchors=anchors, endorsements=self.source, allow_simulated=self.allow_simulated
        )

    def verdict(self, *, report_data: bytes | None = None, now: datetime = NOW, raw: bytes | None = None) -> Verdict:
        """Judges; `raw` replaces the report's bytes after they were signed."""
        evidence = self.evidence
        if raw is not None:
            evidence = replace(evidence, report=raw)
        return self.appraiser(evidence).appraise(evidence, report_data=report_data, now=now)

    def _root_in(self, evidence: Evidence) -> bytes:
        return evidence.certificates[2 if self.send_leaf else 1]

    def fails(self, code: str, *, field: str = "", **how: Any) -> bool:
        """True when the evidence is refused with this code, for this field if one is named."""
        verdict = self.verdict(**how)
        found = [one for one in verdict.failures if one.code == code and field in one.field]
        return bool(found) and not verdict.accepted


class SnpLab:
    """Keys of a test root, and cases that are right in everything."""

    def __init__(self, keys: Path) -> None:
        """`keys` has ark.key, ask.key and asvk.key (PEM)."""
        self.ark, self.ask, self.asvk = (_load(keys / f"{name}.key") for name in ("ark", "ask", "asvk"))
        self.chip = ec.derive_private_key(0x5EED, ec.SECP384R1())

    def case(self, product: Product = Product.MILAN, kind: KeyKind = KeyKind.VCEK, *, version: int = 3) -> Case:
        """Evidence that is accepted without a policy (a VLEK: by a policy that lists its provider)."""
        tcb = bytes(LEVELS.get(part, 0) for part in layout(product))
        chip_id = bytes(range(1, product.hwid_bytes + 1)).ljust(64, b"\0")
        vlek = kind is KeyKind.VLEK
        report = blank_report(version, product, tcb, bytes(64) if vlek else chip_id, 1 << 2 if vlek else 0)
        ark = f"ARK-{product}"
        issuer_name = f"SEV-VLEK-{product}" if vlek else f"SEV-{product}"
        issuer_key = self.asvk if vlek else self.ask
        leaf: dict[str, tuple[bool, bytes]] = {
            OID_STRUCT_VERSION: (False, integer(product.structure_version)),
            OID_PRODUCT_NAME: (False, text(str(product))),
        }
        for part, level in zip(layout(product), tcb, strict=True):
            leaf[OID_SPL[part]] = (False, integer(level))
        if vlek:
            leaf[OID_CSP_ID] = (False, text(CSP_ID))
        else:
            leaf[OID_HWID] = (False, chip_id[: product.hwid_bytes])
        return Case(
            self,
            product,
            kind,
            report,
            root=Spec(ark, ark, self.ark, self.ark, _authority(_CA, _MAY_SIGN_BOTH), serial=0x10000),
            issuer=Spec(
                issuer_name, ark, issuer_key, self.ark, _authority(_CA_PATH_0, _MAY_SIGN_CERTIFICATES), serial=0x10001
            ),
            leaf=Spec(f"SEV-{kind.upper()}", issuer_name, self.chip, issuer_key, leaf),
        )

    def crl(
        self,
        root: Spec,
        revoked: Sequence[int] = (),
        *,
        made: datetime = NOW - timedelta(days=1),
        until: datetime = NOW + timedelta(days=30),
        signer: rsa.RSAPrivateKey | None = None,
    ) -> bytes:
        """A revocation list of `root`."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(_name(root.subject))
        builder = builder.last_update(made).next_update(until)
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(made).build()
            builder = builder.add_revoked_certificate(entry)
        signed = builder.sign(signer or self.ark, SHA384(), rsa_padding=PSS)
        return signed.public_bytes(Encoding.DER)


def _authority(constraints: bytes, usage: bytes) -> dict[str, tuple[bool, bytes]]:
    return {OID_BASIC_CONSTRAINTS: (True, constraints), OID_KEY_USAGE: (True, usage)}


def _load(path: Path) -> rsa.RSAPrivateKey:
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def blank_report(version: int, product: Product, tcb: bytes, chip_id: bytes, key_info: int) -> Report:
    """A report that is right in everything, unsigned."""
    family, model, stepping = CPUID[product] if version >= 3 else (0, 0, 0)
    return Report(
        version=version,
        guest_svn=2,
        policy=0x3001F,
        family_id=b"F" * 16,
        image_id=b"I" * 16,
        vmpl=0,
        signature_algorithm=1,
        current_tcb=tcb,
        platform_info=0x25,
        key_info=key_info,
        reserved_4c=bytes(4),
        report_data=b"D" * 64,
        measurement=MEASUREMENT,
        host_data=b"H" * 32,
        id_key_digest=b"K" * 48,
        author_key_digest=bytes(48),
        report_id=b"R" * 32,
        report_id_ma=b"\xff" * 32,
        reported_tcb=tcb,
        cpuid_family=family,
        cpuid_model=model,
        cpuid_stepping=stepping,
        reserved_18b=bytes(21),
        chip_id=chip_id,
        committed_tcb=tcb,
        current_build=29,
        current_minor=55,
        current_major=1,
        reserved_1eb=bytes(1),
        committed_build=29,
        committed_minor=55,
        committed_major=1,
        reserved_1ef=bytes(1),
        launch_tcb=tcb,
        launch_mitigations=0xB if version >= 5 else 0,
        current_mitigations=0xF if version >= 5 else 0,
        reserved_208=bytes(152),
        signature=bytes(512),
    )


def simulated(case: Case) -> Case:
    """The same under names that say SIMULATED, with a simulated anchor."""
    ark, ask = f"SIMULATED-{case.root.subject}", f"SIMULATED-{case.issuer.subject}"
    return case.but(
        simulated=True,
        root=replace(case.root, subject=ark, issuer=ark),
        issuer=replace(case.issuer, subject=ask, issuer=ark),
        leaf=replace(case.leaf, issuer=ask),
    )


def policy_text(rules: str = "", *, top: str = "", pins: str = f"measurements: ['{MEASUREMENT.hex()}']") -> str:
    """A policy of one identity `guest` with these keys more, one a line."""
    lines = [line for line in (pins, *rules.splitlines()) if line.strip()]
    identity = "\n".join(f"    {line}" for line in lines)
    return f"version: 1\n{top}\nidentities:\n  - name: guest\n{identity}\n    regions: {{book: write}}\n"
