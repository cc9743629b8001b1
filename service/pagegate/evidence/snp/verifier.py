"""Finds the chain of a report and verifies it. Everything slow that repeats is done once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from threading import Lock
from typing import Final, Generic, TypeVar

from pagegate.errors import EndorsementError, EvidenceError
from pagegate.evidence.checks import run
from pagegate.evidence.model import (
    EndorsementRequest,
    Endorsements,
    EndorsementSource,
    Evidence,
    Failure,
    KeyKind,
    Stages,
    untimed,
)
from pagegate.evidence.snp.anchors import TrustAnchor, amd_certificates
from pagegate.evidence.snp.certificate import (
    CN_VCEK,
    CN_VLEK,
    AmdExtensions,
    Certificate,
    parse_amd_extensions,
    parse_certificate,
    split_certificates,
)
from pagegate.evidence.snp.chain import CHAIN_CHECKS, Chain, identity_fits_kind, signed_by
from pagegate.evidence.snp.endorsement import ENDORSEMENT_CHECKS, EndorsedReport, certificate_url
from pagegate.evidence.snp.product import Product, candidate_products, product_of_cpuid, product_of_name
from pagegate.evidence.snp.report import SIGNED_BYTES, Report, SigningKey
from pagegate.evidence.snp.revocation import RevocationList, parse_crl
from pagegate.evidence.snp.structure import CPUID_VERSION, STRUCTURE_CHECKS, ReportSubject
from pagegate.evidence.snp.table import ATTACHMENT, parse_table
from pagegate.evidence.snp.tcb import Tcb

_KINDS = {SigningKey.VCEK: KeyKind.VCEK, SigningKey.VLEK: KeyKind.VLEK}
_LEAF_NAMES = {KeyKind.VCEK: CN_VCEK, KeyKind.VLEK: CN_VLEK}
_CACHE_ENTRIES: Final = 256
_CACHED_BYTES: Final = 64 * 1024
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Verified:
    """What verification found of one report."""

    report: Report
    product: Product | None
    chain: Chain | None
    failures: tuple[Failure, ...]
    """Empty when the report is genuine: signed, by a chain that ends in an anchor. Dates are not in it."""
    lists: tuple[RevocationList, ...]
    list_problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Brought:
    """The certificates and revocation lists that came with the evidence."""

    certificates: tuple[bytes, ...]
    crls: tuple[bytes, ...]
    failures: tuple[Failure, ...]


class _Cache(Generic[Value]):
    """A bounded least-recently-used cache. Keys hold the very bytes, so nothing can stand in for another."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, size: int, make: Callable[[], Value]) -> Value:
        """The value of `key`, made outside the lock when it is not there.

        What a peer sends is kept only while it is small: `size` bytes, so that nobody can fill the memory.
        """
        if size > _CACHED_BYTES:
            return make()
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        value = make()
        with self._lock:
            self._entries[key] = value
            while len(self._entries) > _CACHE_ENTRIES:
                self._entries.popitem(last=False)
        return value


class SnpVerifier:
    """Verifies SEV-SNP reports against anchors. Safe for use by several threads."""

    def __init__(
        self, anchors: Sequence[TrustAnchor], endorsements: EndorsementSource, stages: Stages = untimed
    ) -> None:
        self._anchors = {anchor.ark_digest: anchor for anchor in anchors}
        self._endorsements = endorsements
        self._stages = stages
        self._shipped = tuple(map(parse_certificate, amd_certificates()))
        self._brought: _Cache[_Brought] = _Cache()
        self._chains: _Cache[tuple[Chain | None, tuple[Failure, ...]]] = _Cache()
        self._lists: _Cache[RevocationList | str] = _Cache()

    def verify(self, evidence: Evidence, report: Report, *, ask_for_crl: bool) -> Verified:
        """Runs every check that does not depend on time or policy. `ask_for_crl` asks the source for one."""
        kind = _KINDS.get(SigningKey(report.signing_key)) if report.signing_key in _KINDS else None
        table = evidence.attachments.get(ATTACHMENT, b"")
        size = len(table) + _total(evidence.certificates)
        brought = self._brought.get((evidence.certificates, table), size, lambda: _unpack(evidence.certificates, table))
        failures = list(brought.failures)
        product = product_of_cpuid(report.cpuid_family, report.cpuid_model) if report.version >= CPUID_VERSION else None
        chain: Chain | None = None
        crls = brought.crls
        problems: tuple[str, ...] = ()
        if kind is not None and (product is not None or report.version < CPUID_VERSION):
            chain, found, problems, chain_failures = self._find(report, kind, product, brought, ask_for_crl)
            failures += chain_failures
            crls = (*crls, *(one.crl for one in found if one.crl is not None))
        if chain is not None and product is None and report.version < CPUID_VERSION:
            product = _product_of_chain(chain)
        failures = [*run(STRUCTURE_CHECKS, ReportSubject(report, product)), *failures]
        if chain is not None and product is not None:
            signed = evidence.report[:SIGNED_BYTES]
            with self._stages("signature"):
                failures += run(ENDORSEMENT_CHECKS, EndorsedReport(report, signed, product, chain))
        elif chain is not None:
            failures.append(_no_product(chain))
        with self._stages("chain"):
            lists, list_problems = self._believed(chain, crls)
        return Verified(report, product, chain, tuple(failures), lists, (*problems, *list_problems))

    def _find(
        self, report: Report, kind: KeyKind, product: Product | None, brought: _Brought, ask_for_crl: bool
    ) -> tuple[Chain | None, tuple[Endorsements, ...], tuple[str, ...], tuple[Failure, ...]]:
        """The chain: from the evidence and the shipped authorities first, from the source what is missing."""
        chain, failures = self._assemble(report, kind, product, brought.certificates)
        complete = chain is not None and chain.anchor is not None and _fits(report, chain.extensions)
        if complete and not ask_for_crl:
            return chain, (), (), failures
        problems: list[str] = []
        for candidate in (product,) if product else _products_to_ask(report, chain):
            request = EndorsementRequest(
                product=candidate,
                kind=kind,
                chip_id=report.chip_id,
                reported_tcb=report.reported_tcb,
                need_leaf=not complete,
                need_chain=not complete,
            )
            try:
                with self._stages("endorsements"):
                    found = self._endorsements.find(request)
            except EndorsementError as error:
                problems.append(error.message)
                continue
            problems += found.problems
            if complete:
                return chain, (found,), tuple(problems), failures
            leaf = (found.leaf,) if found.leaf is not None else ()
            certificates = (*leaf, *brought.certificates, *found.chain)
            better, better_failures = self._assemble(report, kind, product, certificates)
            if better is not None:
                return better, (found,), tuple(problems), better_failures
            failures = better_failures
        if chain is None:
            failures = tuple(_with_why(failure, problems, report, kind, product) for failure in failures)
        return chain, (), tuple(problems), failures

    def _assemble(
        self, report: Report, kind: KeyKind, product: Product | None, certificates: tuple[bytes, ...]
    ) -> tuple[Chain | None, tuple[Failure, ...]]:
        key = (kind, product, report.chip_id, report.reported_tcb, certificates)
        with self._stages("chain"):
            return self._chains.get(key, _total(certificates), lambda: self._build(report, kind, certificates))

    def _build(
        self, report: Report, kind: KeyKind, certificates: tuple[bytes, ...]
    ) -> tuple[Chain | None, tuple[Failure, ...]]:
        pool: list[Certificate] = []
        leaves: list[tuple[Certificate, AmdExtensions]] = []
        others: list[Certificate] = []
        failures: list[Failure] = []
        for data in certificates:
            try:
                certificate = parse_certificate(data)
                if certificate.subject_name == _LEAF_NAMES[kind]:
                    leaves.append((certificate, parse_amd_extensions(certificate)))
                elif certificate.subject_name in _LEAF_NAMES.values():
                    others.append(certificate)
                else:
                    pool.append(certificate)
            except EvidenceError as error:
                failures.append(_malformed(error))
        if not leaves:
            return None, (*failures, _other_kind(kind, others[0]) if others else _missing(kind.upper()))
        leaf, extensions = max(leaves, key=lambda one: _fits(report, one[1]))
        issuer = self._issuer_of(leaf, (*pool, *self._shipped))
        root = None if issuer is None else self._root_of(issuer, (*pool, *self._shipped))
        if issuer is None or root is None:
            what = f"{'ASK' if kind is KeyKind.VCEK else 'ASVK'} and ARK of {leaf.issuer_name}"
            return None, (*failures, _missing(what))
        anchor = self._anchors.get(sha256(root.raw).digest())
        chain = Chain(kind, leaf, extensions, issuer, root, anchor)
        return chain, (*failures, *run(CHAIN_CHECKS, chain))

    def _issuer_of(self, leaf: Certificate, pool: Iterable[Certificate]) -> Certificate | None:
        named = [one for one in pool if one.subject == leaf.issuer]
        signers = [one for one in named if signed_by(leaf.tbs, leaf.signature, one)]
        return next(iter((*signers, *named)), None)

    def _root_of(self, issuer: Certificate, pool: Iterable[Certificate]) -> Certificate | None:
        named = [one for one in pool if one.subject == issuer.issuer]
        pinned = [one for one in named if sha256(one.raw).digest() in self._anchors]
        return next(iter((*pinned, *named)), None)

    def _believed(
        self, chain: Chain | None, crls: Iterable[bytes]
    ) -> tuple[tuple[RevocationList, ...], tuple[str, ...]]:
        """The lists that the chain's root signed, and why others are not believed."""
        if chain is None:
            return (), ()
        judged = [self._lists.get((chain.root.raw, crl), len(crl), partial(_judge, chain.root, crl)) for crl in crls]
        return (
            tuple(one for one in judged if isinstance(one, RevocationList)),
            tuple(one for one in judged if isinstance(one, str)),
        )


def _total(blobs: Iterable[bytes]) -> int:
    return sum(map(len, blobs))


def _judge(root: Certificate, crl: bytes) -> RevocationList | str:
    try:
        parsed = parse_crl(crl)
    except EvidenceError as error:
        return error.message
    if parsed.issuer != root.subject or not signed_by(parsed.tbs, parsed.signature, root):
        return f"the revocation list is not signed by {root.subject_name}"
    return parsed


def _unpack(certificates: tuple[bytes, ...], table: bytes) -> _Brought:
    blobs = list(certificates)
    crls: list[bytes] = []
    failures: list[Failure] = []
    try:
        for entry in parse_table(table):
            if entry.name == "crl":
                crls.append(entry.data)
            elif entry.name:
                blobs.append(entry.data)
    except EvidenceError as error:
        failures.append(_malformed(error))
    try:
        return _Brought(split_certificates(blobs), tuple(crls), tuple(failures))
    except EvidenceError as error:
        return _Brought((), tuple(crls), (*failures, _malformed(error)))


def _fits(report: Report, extensions: AmdExtensions) -> bool:
    """True when a leaf says the report's TCB and, if both have one, its chip."""
    product = product_of_name(extensions.product_name or "")
    if product is None:
        return False
    tcb = Tcb.from_bytes(product, report.reported_tcb)
    hwid = extensions.hwid
    same_chip = hwid is None or report.chip_id_masked or report.chip_id[: len(hwid)] == hwid
    return same_chip and dict(extensions.spl) == dict(tcb.parts)


def _product_of_chain(chain: Chain) -> Product | None:
    if chain.anchor is not None:
        return chain.anchor.product
    return product_of_name(chain.extensions.product_name or "")


def _products_to_ask(report: Report, chain: Chain | None) -> tuple[Product, ...]:
    known = None if chain is None else _product_of_chain(chain)
    return candidate_products(report.chip_id) if known is None else (known,)


def _malformed(error: EvidenceError) -> Failure:
    return Failure(error.reason, "certificates", "well-formed", error.message, "RFC 5280; 57230; 56421")


def _missing(what: str) -> Failure:
    return Failure("SNP_ENDORSEMENT_MISSING", what, "given with the evidence or found", "not found", "57230, KDS")


def _other_kind(kind: KeyKind, found: Certificate) -> Failure:
    hint = f"the report names a {kind.upper()} as its signer; give that certificate"
    return Failure(
        "SNP_CERT_KIND", "signing_key", _LEAF_NAMES[kind], found.subject_name, identity_fits_kind.source, hint
    )


def _no_product(chain: Chain) -> Failure:
    return Failure(
        "SNP_PRODUCT_UNKNOWN",
        "certificate productName",
        "a product whose root is known",
        chain.extensions.product_name or "absent",
        "57230, product names",
    )


def _with_why(
    failure: Failure, problems: Sequence[str], report: Report, kind: KeyKind, product: Product | None
) -> Failure:
    if failure.code != "SNP_ENDORSEMENT_MISSING":
        return failure
    url = certificate_url(product, kind, report.chip_id, report.reported_tcb) if product else ""
    hint = f"get it from {url}" if url else "KDS cannot give it; the cloud provider's host must send it along"
    if product is None and kind is KeyKind.VCEK and not report.chip_id_masked:
        hint = "a version 2 report does not say its product; give the certificate"
    found = "; ".join(problems) or failure.found
    return Failure(failure.code, failure.field, failure.expected, found, failure.source, hint)
