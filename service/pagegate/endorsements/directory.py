"""Endorsements from a directory of DER and PEM files; what a file holds decides, not its name."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pagegate.endorsements.certificate import (
    amd_extensions,
    invalid,
    is_root,
    parse_certificate,
    split_pem,
)
from pagegate.endorsements.clock import Clock, SystemClock
from pagegate.endorsements.content import MAX_BODY, Content, parse_chain, parse_crl, parse_leaf
from pagegate.endorsements.part import Part, PartKind, chain_part, crl_part, leaf_part
from pagegate.errors import ConfigError, EndorsementError
from pagegate.evidence import der
from pagegate.evidence.model import EndorsementRequest, Endorsements, KeyKind
from pagegate.evidence.snp.certificate import Certificate

MAX_FILES = 10_000
_LOOK_EVERY = 1.0
"""Seconds between two looks at the directory for changes."""
_MAX_FILE = MAX_BODY[PartKind.CRL]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a set of files holds, and why the others were passed over."""

    contents: tuple[Content, ...]
    skipped: tuple[str, ...]


def collect(files: Iterable[tuple[str, bytes]]) -> Collected:
    """Sorts (name, bytes) pairs into leaves, chains and CRLs. Signatures of leaves and CRLs are not checked here."""
    contents: list[Content] = []
    authorities: dict[bytes, Certificate] = {}
    skipped: list[str] = []
    for name, data in files:
        try:
            for label, body in split_pem(data) or [("", data)]:
                found = _read(name, label, body)
                if isinstance(found, Certificate):
                    authorities[body] = found
                else:
                    contents += found
        except EndorsementError as error:
            skipped.append(f"{name}: {error.message}")
    chains = _pair(list(authorities.values()), skipped)
    return Collected((*chains, *contents), tuple(skipped))


class DirectorySource:
    """Looks in one directory and those below it; read again when a file in it comes, goes or changes."""

    def __init__(self, path: Path, *, clock: Clock | None = None) -> None:
        """Raises ConfigError when `path` is not a directory."""
        if not path.is_dir():
            raise ConfigError("ENDORSEMENT_SETTING_INVALID", f"endorsement directory {path}: not a directory")
        self._path = path
        self._clock: Clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._looked_at: float | None = None
        self._seen: tuple[tuple[str, int, int], ...] | None = None
        self._parts: dict[Part, Content] = {}

    def find(self, request: EndorsementRequest) -> Endorsements:
        """Returns what the directory has for `request`; never raises for what it lacks."""
        parts = self._index()
        problems: list[str] = []
        leaf = _lookup(parts, lambda: leaf_part(request), problems)
        chain = _lookup(parts, lambda: chain_part(request.product, request.kind), problems)
        crl = _lookup(parts, lambda: crl_part(request.product, request.kind), problems)
        if leaf is None and request.need_leaf:
            problems += [f"directory {self._path} has {other}" for other in _same_chip(parts, request)]
        return Endorsements(
            leaf=leaf.body if leaf else None,
            chain=tuple(c.raw for c in chain.certificates) if chain else (),
            crl=crl.body if crl else None,
            source=f"directory {self._path}",
            fetched_at=crl.made_at if crl else None,
            problems=tuple(problems),
        )

    def _index(self) -> dict[Part, Content]:
        with self._lock:
            now = self._clock.monotonic()
            if self._looked_at is not None and now - self._looked_at < _LOOK_EVERY:
                return self._parts
            self._looked_at = now
            files = sorted(_files(self._path))
            seen = tuple((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files)
            if seen != self._seen:
                collected = collect(_contents(files))
                for why in collected.skipped:
                    _log.info("endorsement directory %s: passed over %s", self._path, why)
                self._parts = best(collected.contents, datetime.fromtimestamp(self._clock.now(), UTC))
                self._seen = seen
            return self._parts


def best(contents: Iterable[Content], now: datetime) -> dict[Part, Content]:
    """One content for each part: one in force rather than not, then the newest."""
    chosen: dict[Part, Content] = {}
    for content in contents:
        other = chosen.get(content.part)
        if other is None or _rank(content, now) > _rank(other, now):
            chosen[content.part] = content
    return chosen


def read_directory(path: Path) -> list[tuple[str, bytes]]:
    """(name, bytes) of the regular files at and below `path` that may hold certificates."""
    return _contents(sorted(_files(path)))


def _rank(content: Content, now: datetime) -> tuple[bool, datetime]:
    return (content.made_at <= now < content.expires_at, content.made_at)


def _files(path: Path) -> list[Path]:
    files = []
    for file in path.rglob("*"):
        if file.is_file() and not file.name.startswith(".") and file.stat().st_size <= _MAX_FILE:
            files.append(file)
            if len(files) > MAX_FILES:
                raise EndorsementError("ENDORSEMENT_CONTENT_INVALID", f"{path}: more than {MAX_FILES} files")
    return files


def _contents(files: list[Path]) -> list[tuple[str, bytes]]:
    contents = []
    for file in files:
        try:
            contents.append((str(file), file.read_bytes()))
        except OSError as error:
            _log.info("%s: %s", file, error)
    return contents


def _read(name: str, label: str, body: bytes) -> list[Content] | Certificate:
    """A leaf, a CRL (once for each key kind it stands for), or a CA certificate; nothing for other PEM blocks."""
    if label == "X509 CRL" or (not label and _looks_like_crl(body)):
        return [parse_crl(body, kind) for kind in _kinds(name)]
    if label not in ("", "CERTIFICATE"):
        return []
    if body[:1] != b"\x30":
        raise invalid("neither a certificate nor a revocation list, DER or PEM")
    certificate = parse_certificate(body)
    return [parse_leaf(body)] if amd_extensions(certificate).spl else certificate


def _looks_like_crl(body: bytes) -> bool:
    """A to-be-signed CRL starts with its version or algorithm, a certificate with [0]."""
    try:
        return der.read_whole(body).children()[0].children()[0].tag != 0xA0
    except (der.DerError, IndexError):
        return False


def _kinds(name: str) -> tuple[KeyKind, ...]:
    """A CRL does not say which key kind KDS serves it for; its name may, else it stands for both."""
    lower = Path(name).name.lower()
    named = tuple(kind for kind in KeyKind if kind.value in lower)
    return named if len(named) == 1 else tuple(KeyKind)


def _pair(authorities: list[Certificate], skipped: list[str]) -> list[Content]:
    roots = {c.subject: c for c in authorities if is_root(c)}
    chains = []
    for certificate in authorities:
        if is_root(certificate):
            continue
        root = roots.get(certificate.issuer)
        if root is None:
            skipped.append(f"{certificate.subject_name}: its issuer {certificate.issuer_name} is not there")
            continue
        try:
            chains.append(parse_chain([certificate.raw, root.raw]))
        except EndorsementError as error:
            skipped.append(error.message)
    return chains


def _lookup(parts: dict[Part, Content], name: Callable[[], Part], problems: list[str]) -> Content | None:
    try:
        return parts.get(name())
    except EndorsementError as error:
        problems.append(str(error))
        return None


def _same_chip(parts: dict[Part, Content], request: EndorsementRequest) -> list[str]:
    """The commonest mistake has its own message: the certificate is for another TCB."""
    chip_id = bytes(request.chip_id)
    return [str(part) for part in parts if part.hwid and any(chip_id) and chip_id.startswith(part.hwid)]
