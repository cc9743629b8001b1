"""Carrying a cache across: export, import, tar."""

from __future__ import annotations

import io
import tarfile
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from endorsement_support import vectors
from endorsement_support.pki import START, YEAR, Hierarchy
from pagegate.endorsements import archive as archive_module
from pagegate.endorsements import chain_part, crl_part, leaf_part
from pagegate.endorsements.archive import export, import_files, read_files
from pagegate.endorsements.cache import Cache
from pagegate.errors import EndorsementError
from pagegate.evidence.model import KeyKind

NOW = 1_800_000_000.0


def files(milan: Hierarchy) -> list[tuple[str, bytes]]:
    return [("leaf", milan.leaf()), ("chain", milan.chain_pem()), ("vcek-crl", milan.crl())]


def take(cache: Cache, given: list[tuple[str, bytes]], **options: frozenset[str]) -> tuple[list[str], list[str]]:
    result = import_files(cache, given, now=NOW, source="test", **options)
    return [part.kind.value for part in result.taken], list(result.refused)


def test_import_when_the_real_vectors_are_given_takes_what_amd_signed(cache: Cache) -> None:
    result = import_files(cache, read_files(vectors.sev_snp()), now=NOW, source="vectors")
    assert len([part for part in result.taken if part.hwid]) == len({leaf.part for leaf in vectors.leaves()})
    assert sum("signature is not of 'SEV-Milan'" in why for why in result.refused) == 2


def test_import_when_exported_before_gives_the_same_cache(cache: Cache, tmp_path: Path, milan: Hierarchy) -> None:
    take(cache, [*files(milan), ("vlek", milan.leaf(kind=KeyKind.VLEK)), ("asvk", milan.intermediate(KeyKind.VLEK))])
    written = export(cache, tmp_path / "out")
    other = Cache(tmp_path / "other.db", max_bytes=1024 * 1024)
    import_files(other, read_files(tmp_path / "out"), now=NOW, source="test")
    assert [(s.part, s.body) for s in other.stored()] == [(s.part, s.body) for s in cache.stored()]
    other.close()
    assert len(written) == 5


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_import_when_a_tar_is_given_reads_it_in_place(
    cache: Cache, tmp_path: Path, milan: Hierarchy, mode: Literal["w", "w:gz", "w:xz"]
) -> None:
    open_tar: Any = tarfile.open
    with open_tar(tmp_path / "t.tar", mode) as archive:
        for name, body in files(milan):
            member = tarfile.TarInfo(f"../../{name}")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert take(cache, read_files(tmp_path / "t.tar"))[0] == ["chain", "crl", "leaf"]


def test_import_when_the_tar_is_cut_off_refuses(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w:gz") as archive:
        archive.add(vectors.sev_snp() / "certs", "certs")
    whole = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EndorsementError, match="not a whole tar"):
        read_files(tmp_path / "t.tar")


def test_import_when_the_tar_is_too_big_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_TAR_BYTES", 1000)
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.add(vectors.sev_snp() / "certs", "certs")
    with pytest.raises(EndorsementError, match="over 10000 files or 1000 bytes"):
        read_files(tmp_path / "t.tar")


def test_import_when_a_single_file_is_given_takes_it(cache: Cache, tmp_path: Path, milan: Hierarchy) -> None:
    (tmp_path / "chain.pem").write_bytes(milan.chain_pem())
    assert take(cache, read_files(tmp_path / "chain.pem"))[0] == ["chain"]


def test_import_when_the_chain_is_cached_needs_only_the_leaf(cache: Cache, milan: Hierarchy) -> None:
    take(cache, [("chain", milan.chain_pem())])
    assert take(cache, [("leaf", milan.leaf())]) == (["leaf"], [])


def test_import_when_no_chain_is_there_refuses_the_leaf(cache: Cache, milan: Hierarchy) -> None:
    taken, refused = take(cache, [("leaf", milan.leaf())])
    assert taken == []
    assert "import its ASK or ASVK and ARK with it" in refused[0]


def test_import_when_the_leaf_is_forged_refuses_it(cache: Cache, milan: Hierarchy, turin: Hierarchy) -> None:
    taken, refused = take(cache, [("leaf", milan.leaf(signer=turin.sub_key)), ("chain", milan.chain_pem())])
    assert taken == ["chain"]
    assert "signature is not of 'SEV-Milan'" in refused[0]


def test_import_when_the_cached_crl_is_newer_keeps_it(cache: Cache, milan: Hierarchy) -> None:
    newer = milan.crl(this_update=START + timedelta(days=9), next_update=START + 4 * YEAR)
    take(cache, [("chain", milan.chain_pem()), ("vcek-crl", newer)])
    taken, refused = take(cache, [("vcek-crl", milan.crl())])
    assert taken == []
    assert "the cache has a newer one" in refused[0]


def test_import_when_a_crl_is_carried_late_is_as_old_as_it_says(cache: Cache, milan: Hierarchy) -> None:
    take(cache, files(milan))
    stored = cache.get(crl_part("Milan", KeyKind.VCEK), NOW)
    assert stored is not None
    assert stored.fetched_at == START.timestamp()


def test_import_when_a_crls_name_tells_no_kind_stands_for_both(cache: Cache, milan: Hierarchy) -> None:
    asvk = ("asvk", milan.intermediate(KeyKind.VLEK))
    assert take(cache, [("chain", milan.chain_pem()), asvk, ("crl", milan.crl())])[0].count("crl") == 2


def test_import_when_the_root_is_not_allowed_refuses_all(cache: Cache, milan: Hierarchy) -> None:
    taken, refused = take(cache, files(milan), roots=frozenset({"00" * 32}))
    assert taken == []
    assert "is not among the 1 allowed" in refused[0]


def test_export_when_names_are_read_say_what_files_hold(cache: Cache, tmp_path: Path, milan: Hierarchy) -> None:
    take(cache, files(milan))
    names = {part: path.name for part, path in export(cache, tmp_path / "out")}
    assert names[chain_part("Milan", KeyKind.VCEK)] == "vcek-milan-chain.pem"
    assert names[crl_part("Milan", KeyKind.VCEK)] == "vcek-milan-crl.der"
    assert names[leaf_part(milan.request())].startswith("vcek-milan-0102")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names.values())
