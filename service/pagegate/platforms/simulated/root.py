"""A root of trust made of files: ARK, ASK, ASVK, revocation list, and chips that they certify.

Directory layout (mode 0700), PEM throughout: ark.key, ark.pem, ask.key, ask.pem, crl.pem; asvk.key and asvk.pem once
a VLEK was asked for; chips/NAME/chip-id (hex), tcb (hex) after a firmware update and, for each TCB, vcek-TCB.key, vcek-TCB.pem (or vlek-...). As on
silicon the signing key changes with the TCB and the chip id does not.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pagegate.errors import PlatformError
from pagegate.evidence.model import KeyKind
from pagegate.platforms.simulated import certificates
from pagegate.platforms.simulated.products import CHIP_ID_BYTES, PRODUCTS, Product, Tcb, product_named
from pagegate.platforms.simulated.report import ReportFields, sign_report
from pagegate.platforms.simulated.state import locked, make_private_directory, write_whole

DEFAULT_CSP_ID = "CN=SIMULATED.pagegate.invalid"

_CHIP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_Parsed = TypeVar("_Parsed")
_ISSUER_FILES = {KeyKind.VCEK: "ask", KeyKind.VLEK: "asvk"}


def say_on_stderr(message: str) -> None:
    """The default progress callback."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


@dataclass(frozen=True, slots=True)
class SimulatedChip:
    """A chip's identity and signing key at one TCB. Its reports verify only against its own simulated root."""

    name: str
    product: Product
    tcb: Tcb
    chip_id: bytes
    """64 bytes, as the report carries them."""
    kind: KeyKind
    key: ec.EllipticCurvePrivateKey
    certificates: tuple[bytes, ...]
    """DER: the VCEK or VLEK, the ASK or ASVK, the ARK."""

    @property
    def tcb_bytes(self) -> bytes:
        """TCB_VERSION, 8 bytes in file order."""
        return self.product.tcb_bytes(self.tcb)

    def sign(self, fields: ReportFields) -> bytes:
        """Returns the 1184-byte report of `fields`, signed."""
        return sign_report(fields, self.key)


class SimulatedRoot:
    """A simulated AMD root of one product line. Proves nothing: whoever reads the directory can sign anything.

    Safe to open from several processes at once.
    """

    def __init__(self, directory: Path, product: Product, progress: Callable[[str], None]) -> None:
        self._directory = directory
        self._progress = progress
        self.product = product
        self._ark = _read_certificate(directory / "ark.pem")

    @classmethod
    def open_or_create(
        cls, directory: Path, *, product: str = "Milan", progress: Callable[[str], None] = say_on_stderr
    ) -> SimulatedRoot:
        """Opens the root in `directory`, making it first if it is not there yet (two RSA-4096 keys: seconds).

        `progress` is called with a line for the operator before each slow step. Raises PlatformError.
        """
        line = product_named(product)
        make_private_directory(directory)
        with locked(directory):
            if not (directory / "ark.pem").exists():
                _create(directory, line, progress)
            root = cls(directory, line, progress)
            root._require_product()
            root._keep_crl_fresh()
        return root

    @property
    def ark_der(self) -> bytes:
        return _der(self._ark)

    @property
    def ark_digest(self) -> str:
        """SHA-256 of the ARK's DER, hex: what a policy that accepts this root pins."""
        return hashlib.sha256(self.ark_der).hexdigest()

    @property
    def ask_der(self) -> bytes:
        return _der(_read_certificate(self._directory / "ask.pem"))

    @property
    def crl_der(self) -> bytes:
        return _read_crl(self._directory / "crl.pem").public_bytes(serialization.Encoding.DER)

    def chip(
        self,
        name: str,
        tcb: Tcb | None = None,
        *,
        kind: KeyKind = KeyKind.VCEK,
        csp_id: str = DEFAULT_CSP_ID,
    ) -> SimulatedChip:
        """Returns the chip called `name`, the same at every call and in every process.

        `tcb` defaults to that of the last `update_firmware`, else to a recent one of the product. With `kind` VLEK its key is certified for the cloud provider
        `csp_id` (ASCII, at most 127 characters) instead of for the chip.
        """
        if not _CHIP_NAME.fullmatch(name):
            raise PlatformError(
                "SIMULATED_CHIP_NAME_INVALID",
                f"chip name {name!r} is not usable; use 1 to 64 letters, digits, '.', '_' or '-', "
                "a letter or digit first",
            )
        if not csp_id.isascii() or not 0 < len(csp_id) <= 127:
            raise PlatformError(
                "SIMULATED_CSP_ID_INVALID", f"csp id {csp_id!r} is not usable; give 1 to 127 ASCII characters"
            )
        home = self._directory / "chips" / name
        with locked(self._directory):
            # Not by parents=True: the mode holds for the last directory only.
            for folder in (home.parent, home):
                folder.mkdir(mode=0o700, exist_ok=True)
            level = tcb or self._firmware(home)
            chip_id = self._chip_id(home)
            issuer = self._issuer(kind)
            stem = home / f"{kind}-{self.product.tcb_bytes(level).hex()}"
            if kind is KeyKind.VLEK:
                stem = stem.with_name(f"{stem.name}-{hashlib.sha256(csp_id.encode()).hexdigest()[:16]}")
            key, leaf = self._leaf(stem, kind, tcb=level, chip_id=chip_id, csp_id=csp_id, issuer=issuer)
        return SimulatedChip(name, self.product, level, chip_id, kind, key, (_der(leaf), _der(issuer), self.ark_der))

    def update_firmware(self, name: str, tcb: Tcb) -> None:
        """Gives the chip called `name` another TCB and so another key, as a firmware update does: for drills."""
        self.chip(name, tcb)
        write_whole(self._directory / "chips" / name / "tcb", self.product.tcb_bytes(tcb).hex().encode() + b"\n")

    def as_it_runs(self, chip: SimulatedChip) -> SimulatedChip:
        """`chip`, or the same chip at its new TCB when its firmware was updated since. VCEKs only."""
        running = self._firmware(self._directory / "chips" / chip.name)
        return chip if running == chip.tcb or chip.kind is KeyKind.VLEK else self.chip(chip.name, running)

    def revoke(self, certificate: bytes) -> None:
        """Puts a certificate (DER) on the revocation list, for tests and drills."""
        serial = x509.load_der_x509_certificate(certificate).serial_number
        with locked(self._directory):
            crl = _read_crl(self._directory / "crl.pem")
            self._write_crl({entry.serial_number for entry in crl} | {serial})

    def _require_product(self) -> None:
        names = {certificates.root_name(product): product.name for product in PRODUCTS.values()}
        common_name = str(self._ark.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
        found = names.get(common_name, common_name)
        if found != self.product.name:
            raise PlatformError(
                "SIMULATED_PRODUCT_MISMATCH",
                f"{self._directory} holds a simulated root for {found}, not {self.product.name}; "
                "give another directory or that product",
            )

    def _keep_crl_fresh(self) -> None:
        crl = _read_crl(self._directory / "crl.pem")
        expiry = crl.next_update_utc
        if expiry is None or expiry - datetime.now(UTC) < certificates.CRL_LIFE / 2:
            self._write_crl({entry.serial_number for entry in crl})

    def _write_crl(self, serials: set[int]) -> None:
        crl = certificates.issue_crl(self._ark, _read_rsa_key(self._directory / "ark.key"), serials)
        write_whole(self._directory / "crl.pem", crl.public_bytes(serialization.Encoding.PEM))

    def _firmware(self, home: Path) -> Tcb:
        path = home / "tcb"
        if not path.exists():
            return self.product.default_tcb
        return _read(path, lambda content: self.product.tcb_of(bytes.fromhex(content.decode().strip())))

    def _chip_id(self, home: Path) -> bytes:
        path = home / "chip-id"
        if not path.exists():
            write_whole(path, secrets.token_bytes(self.product.hwid_bytes).hex().encode() + b"\n")
        return _read(path, lambda content: bytes.fromhex(content.decode().strip())).ljust(CHIP_ID_BYTES, b"\0")

    def _issuer(self, kind: KeyKind) -> x509.Certificate:
        stem = self._directory / _ISSUER_FILES[kind]
        if not stem.with_suffix(".pem").exists():
            _create_intermediate(self._directory, self.product, kind, self._progress)
        return _read_certificate(stem.with_suffix(".pem"))

    def _leaf(
        self, stem: Path, kind: KeyKind, *, tcb: Tcb, chip_id: bytes, csp_id: str, issuer: x509.Certificate
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key_path, certificate_path = _beside(stem, ".key"), _beside(stem, ".pem")
        if not key_path.exists():
            write_whole(key_path, _private_pem(ec.generate_private_key(ec.SECP384R1())))
        key = _read_ec_key(key_path)
        if not certificate_path.exists() or _expired(_read_certificate(certificate_path)):
            leaf = certificates.issue_leaf(
                self.product,
                kind,
                key.public_key(),
                tcb=tcb,
                chip_id=chip_id,
                csp_id=csp_id,
                issuer=issuer,
                issuer_key=_read_rsa_key(self._directory / f"{_ISSUER_FILES[kind]}.key"),
            )
            write_whole(certificate_path, leaf.public_bytes(serialization.Encoding.PEM))
        return key, _read_certificate(certificate_path)


def _create(directory: Path, product: Product, progress: Callable[[str], None]) -> None:
    progress(f"SIMULATED platform: making a root for {product.name} in {directory} (two RSA-4096 keys, some seconds)")
    key = certificates.generate_rsa_key()
    ark = certificates.issue_root(product, key)
    write_whole(directory / "ark.key", _private_pem(key))
    _issue_intermediate(directory, product, KeyKind.VCEK, ark, key)
    crl = certificates.issue_crl(ark, key, ())
    write_whole(directory / "crl.pem", crl.public_bytes(serialization.Encoding.PEM))
    # Last, since its presence says that the rest is there too.
    write_whole(directory / "ark.pem", ark.public_bytes(serialization.Encoding.PEM))


def _create_intermediate(directory: Path, product: Product, kind: KeyKind, progress: Callable[[str], None]) -> None:
    progress(f"SIMULATED platform: making the {kind.upper()} issuer in {directory} (an RSA-4096 key, some seconds)")
    ark = _read_certificate(directory / "ark.pem")
    _issue_intermediate(directory, product, kind, ark, _read_rsa_key(directory / "ark.key"))


def _issue_intermediate(
    directory: Path, product: Product, kind: KeyKind, ark: x509.Certificate, ark_key: rsa.RSAPrivateKey
) -> None:
    key = certificates.generate_rsa_key()
    certificate = certificates.issue_intermediate(product, kind, key.public_key(), ark, ark_key)
    write_whole(directory / f"{_ISSUER_FILES[kind]}.key", _private_pem(key))
    write_whole(directory / f"{_ISSUER_FILES[kind]}.pem", certificate.public_bytes(serialization.Encoding.PEM))


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _expired(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_after_utc <= datetime.now(UTC)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _private_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read(path: Path, parse: Callable[[bytes], _Parsed]) -> _Parsed:
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PlatformError(
            "SIMULATED_STATE_UNUSABLE",
            f"cannot read {path} of the simulated platform: {error}; remove {path.parent} to have it made anew",
        ) from error


def _read_certificate(path: Path) -> x509.Certificate:
    return _read(path, x509.load_pem_x509_certificate)


def _read_crl(path: Path) -> x509.CertificateRevocationList:
    return _read(path, x509.load_pem_x509_crl)


def _read_rsa_key(path: Path) -> rsa.RSAPrivateKey:
    def parse(content: bytes) -> rsa.RSAPrivateKey:
        # Our own file in a private directory: a second primality test of 4096 bits would only cost time.
        key = serialization.load_pem_private_key(content, None, unsafe_skip_rsa_key_validation=True)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError("not an RSA key")
        return key

    return _read(path, parse)


def _read_ec_key(path: Path) -> ec.EllipticCurvePrivateKey:
    def parse(content: bytes) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key(content, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("not an elliptic-curve key")
        return key

    return _read(path, parse)
