"""Carrying endorsements to a site without a network: export to a directory, import from one or from a tar."""

from __future__ import annotations

import base64
import os
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pagegate.endorsements.cache import Cache, Stored
from pagegate.endorsements.cached import check_root
from pagegate.endorsements.content import Content, check_crl_link, check_leaf_link, parse, split_certificates
from pagegate.endorsements.directory import MAX_FILES, best, collect, read_directory
from pagegate.endorsements.part import Part, PartKind, chain_part
from pagegate.errors import EndorsementError

MAX_TAR_BYTES = 256 * 1024 * 1024
_MAX_MEMBER = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import took in and what it refused, with reasons."""

    taken: tuple[Part, ...]
    refused: tuple[str, ...]


def export(cache: Cache, directory: Path) -> list[tuple[Part, Path]]:
    """Writes every cached part as a file of `directory` (made if missing); `import_files` reads it back.

    Raises OSError when the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for stored in cache.stored():
        path = directory / _file_name(stored)
        partial = directory / f".{path.name}.{os.getpid()}"
        partial.write_bytes(_file_body(stored))
        partial.replace(path)
        written.append((stored.part, path))
    return written


def read_files(path: Path) -> list[tuple[str, bytes]]:
    """(name, bytes) of a file, a directory, or a tar, which is read in place: nothing is unpacked.

    Raises EndorsementError ENDORSEMENT_CONTENT_INVALID for a tar that is damaged or too big, OSError when
    `path` cannot be read.
    """
    if path.is_dir():
        return read_directory(path)
    if tarfile.is_tarfile(path):
        return _read_tar(path)
    with path.open("rb") as file:
        return [(str(path), file.read(_MAX_MEMBER + 1))]


def import_files(
    cache: Cache, files: list[tuple[str, bytes]], *, now: float, source: str, roots: frozenset[str] = frozenset()
) -> Imported:
    """Takes leaves, chains and CRLs into the cache, each only when its signature checks out against a chain
    that is among `files` or cached. What is older than the cached one is refused.
    """
    collected = collect(files)
    chosen = best(collected.contents, datetime.fromtimestamp(now, UTC))
    refused = list(collected.skipped)
    taken: list[Part] = []
    for part in sorted(chosen, key=lambda p: (p.kind is not PartKind.CHAIN, p.key)):  # chains first
        content = chosen[part]
        try:
            _check(cache, content, now, roots)
        except EndorsementError as error:
            refused.append(f"{part}: {error.message}")
            continue
        # A CRL is as old as its thisUpdate, whatever the day it was carried here.
        fetched_at = min(now, content.made_at.timestamp()) if part.kind is PartKind.CRL else now
        cache.put(content, source=source, now=now, fetched_at=fetched_at)
        taken.append(part)
    return Imported(tuple(taken), tuple(refused))


def _check(cache: Cache, content: Content, now: float, roots: frozenset[str]) -> None:
    part = content.part
    held = cache.get(part, now)
    if held is not None and held.made_at > content.made_at.timestamp():
        raise EndorsementError("ENDORSEMENT_CONTENT_INVALID", "the cache has a newer one")
    if part.kind is PartKind.CHAIN:
        check_root(content, roots)
        return
    of_chain = chain_part(part.product, part.key_kind)
    chain = cache.get(of_chain, now)
    if chain is None:
        raise EndorsementError(
            "ENDORSEMENT_CONTENT_INVALID", f"no {of_chain} to check it against; import its ASK or ASVK and ARK with it"
        )
    (check_leaf_link if part.kind is PartKind.LEAF else check_crl_link)(content, parse(of_chain, chain.body))


def _read_tar(path: Path) -> list[tuple[str, bytes]]:
    files: list[tuple[str, bytes]] = []
    total = 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isreg() or member.size > _MAX_MEMBER:
                    continue
                total += member.size
                if len(files) >= MAX_FILES or total > MAX_TAR_BYTES:
                    raise EndorsementError(
                        "ENDORSEMENT_CONTENT_INVALID", f"{path}: over {MAX_FILES} files or {MAX_TAR_BYTES} bytes"
                    )
                body = archive.extractfile(member)
                if body is not None:
                    files.append((member.name, body.read(_MAX_MEMBER)))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise EndorsementError("ENDORSEMENT_CONTENT_INVALID", f"{path}: not a whole tar: {error}") from error
    return files


def _file_name(stored: Stored) -> str:
    part = stored.part
    words = [part.key_kind.value, part.product.lower()]
    match part.kind:
        case PartKind.LEAF:
            return "-".join([*words, *(x for x in (part.hwid.hex(), part.tcb.hex()) if x)]) + ".der"
        case PartKind.CHAIN:
            return "-".join([*words, "chain"]) + ".pem"
        case PartKind.CRL:
            return "-".join([*words, "crl"]) + ".der"


def _file_body(stored: Stored) -> bytes:
    if stored.part.kind is not PartKind.CHAIN:
        return stored.body
    return b"".join(
        b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(c) + b"-----END CERTIFICATE-----\n"
        for c in split_certificates(stored.body)
    )
