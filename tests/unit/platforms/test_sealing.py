"""The sealing key in a file, and what is said where there is none."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import enclave_bridge as eb
from pagegate.errors import PlatformError
from pagegate.platforms.sealing import file_key, snp_key


@pytest.fixture
def bridge() -> Iterator[eb.Bridge]:
    with contextlib.closing(eb.Bridge(max_sessions=1, max_handshakes=1)) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sealing.key"


def refused(words: str) -> pytest.RaisesExc[PlatformError]:
    return pytest.raises(PlatformError, match=rf"(?s){words}.*\[SEALING_KEY_FILE\]")


def test_file_key_when_there_is_none_is_made_once_for_this_user_alone(bridge: eb.Bridge, path: Path) -> None:
    file_key(path)(bridge)
    made = path.read_bytes()
    file_key(path)(bridge)
    assert (len(made), path.read_bytes()) == (32, made)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [name.name for name in path.parent.iterdir()] == ["sealing.key"]


def test_file_key_when_made_by_many_at_once_is_one(bridge: eb.Bridge, path: Path) -> None:
    start = threading.Barrier(8)
    tables: list[bytes] = []

    def make() -> None:
        start.wait()
        sealing = file_key(path)(bridge)
        pages, table = os.memfd_create("pages"), os.memfd_create("table")
        os.ftruncate(pages, 4096)
        scope = {"region": "book", "generation": 1, "pages": 1, "fd": pages, "sealing": sealing}
        eb.Guard.new(bridge, **scope).save(table)  # type: ignore[arg-type]
        tables.append(os.pread(table, 4096, 0))
        os.close(pages)
        os.close(table)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sealing = file_key(path)(bridge)
    for content in tables:
        pages, table = os.memfd_create("pages"), os.memfd_create("table")
        os.ftruncate(pages, 4096)
        os.pwrite(table, content, 0)
        eb.Guard.load(bridge, region="book", generation=1, pages=1, fd=pages, sealing=sealing, table_fd=table)
        os.close(pages)
        os.close(table)
    assert len(tables) == 8


@pytest.mark.parametrize("size", [0, 31, 33])
def test_file_key_when_it_has_another_size_is_refused(bridge: eb.Bridge, path: Path, size: int) -> None:
    path.parent.mkdir()
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with refused(f"with {size} bytes"):
        file_key(path)(bridge)
    assert path.stat().st_size == size


def test_file_key_when_others_may_read_it_is_refused(bridge: eb.Bridge, path: Path) -> None:
    file_key(path)(bridge)
    path.chmod(0o644)
    with refused("-rw-r--r--"):
        file_key(path)(bridge)


def test_file_key_when_it_is_a_link_is_refused(bridge: eb.Bridge, path: Path) -> None:
    file_key(path)(bridge)
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))
    with refused("cannot read or make"):
        file_key(path)(bridge)


def test_file_key_when_its_directory_cannot_be_made_is_refused(bridge: eb.Bridge, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with refused("cannot read or make"):
        file_key(tmp_path / "state" / "sealing.key")(bridge)


def test_snp_key_when_there_is_no_device_says_what_to_choose(bridge: eb.Bridge, tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match=r"--sealing file.*\[SEV_GUEST_UNAVAILABLE\]"):
        snp_key(tmp_path / "sev-guest")(bridge)


def test_snp_key_when_the_device_is_none_is_refused(bridge: eb.Bridge, tmp_path: Path) -> None:
    (tmp_path / "sev-guest").touch()
    with pytest.raises(PlatformError, match="SEV_GUEST_KEY_DISABLED"):
        snp_key(tmp_path / "sev-guest", vmpl=0)(bridge)
