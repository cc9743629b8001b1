"""Generations: staged apart, switched in atomically, swept after a crash."""

import os
from pathlib import Path

import pytest

from pagegate.errors import TransferError
from pagegate.transfer.backing import Backing, FileBacking, MemfdBacking

SIZE = 8 * 4096


@pytest.fixture(params=["memfd", "file"])
def backing(request: pytest.FixtureRequest, tmp_path: Path):
    made: Backing = MemfdBacking("book", SIZE) if request.param == "memfd" else FileBacking("book", tmp_path, SIZE)
    yield made
    made.close()


def contents(backing: Backing) -> bytes:
    fd = backing.open_current()
    try:
        return os.pread(fd, SIZE, 0)
    finally:
        os.close(fd)


def stage(backing: Backing, data: bytes, *, offset: int = 0, copy_current: bool = False) -> None:
    fd = backing.stage(copy_current=copy_current)
    os.pwrite(fd, data, offset)
    os.close(fd)


def test_new_region_is_generation_zero_of_zeros(backing: Backing):
    assert (backing.generation, contents(backing)) == (0, bytes(SIZE))


def test_staged_pages_when_not_committed_are_invisible(backing: Backing):
    stage(backing, b"x" * 4096)
    assert contents(backing) == bytes(SIZE)


def test_commit_when_staged_switches_content_and_number(backing: Backing):
    stage(backing, b"x" * 4096)
    assert backing.commit() == 1
    assert contents(backing) == b"x" * 4096 + bytes(SIZE - 4096)


def test_stage_when_copying_starts_from_the_committed_pages(backing: Backing):
    stage(backing, b"a" * SIZE)
    backing.commit()
    stage(backing, b"b" * 4096, offset=4096, copy_current=True)
    backing.commit()
    assert contents(backing) == b"a" * 4096 + b"b" * 4096 + b"a" * (SIZE - 8192)


def test_stage_when_not_copying_starts_from_zeros(backing: Backing):
    stage(backing, b"a" * SIZE)
    backing.commit()
    stage(backing, b"b" * 4096)
    backing.commit()
    assert contents(backing) == b"b" * 4096 + bytes(SIZE - 4096)


def test_discard_when_staged_leaves_the_committed_generation(backing: Backing):
    stage(backing, b"a" * SIZE)
    backing.discard()
    with pytest.raises(TransferError, match="NOTHING_STAGED"):
        backing.commit()
    assert backing.generation == 0


def test_touch_counts_an_in_place_change(backing: Backing):
    fd = backing.open_current()
    os.pwrite(fd, b"p" * 4096, 0)
    os.close(fd)
    assert backing.touch() == 1
    assert contents(backing)[:4096] == b"p" * 4096


def test_former_generation_when_held_open_does_not_change(backing: Backing):
    held = backing.open_current()
    stage(backing, b"new!" * 1024)
    backing.commit()
    assert os.pread(held, SIZE, 0) == bytes(SIZE)
    os.close(held)


def test_file_region_when_reopened_has_its_generation_and_pages(tmp_path: Path):
    first = FileBacking("book", tmp_path, SIZE)
    stage(first, b"a" * SIZE)
    first.commit()
    first.touch()
    again = FileBacking("book", tmp_path, SIZE)
    assert (again.generation, contents(again)) == (2, b"a" * SIZE)


def test_file_region_when_staging_was_left_by_a_crash_drops_it(tmp_path: Path):
    first = FileBacking("book", tmp_path, SIZE)
    stage(first, b"half")
    again = FileBacking("book", tmp_path, SIZE)
    assert (again.generation, contents(again)) == (0, bytes(SIZE))
    assert not (tmp_path / "staging.pages").exists()


def test_file_region_when_crashed_between_rename_and_switch_keeps_the_former(tmp_path: Path):
    first = FileBacking("book", tmp_path, SIZE)
    stage(first, b"a" * SIZE)
    (tmp_path / "staging.pages").rename(tmp_path / "gen-000000000001.pages")
    again = FileBacking("book", tmp_path, SIZE)
    assert (again.generation, contents(again)) == (0, bytes(SIZE))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["current", "gen-000000000000.pages"]


def test_file_region_when_configured_with_another_size_is_refused(tmp_path: Path):
    FileBacking("book", tmp_path, SIZE)
    with pytest.raises(TransferError, match="REGION_SIZE"):
        FileBacking("book", tmp_path, SIZE * 2)


def test_file_region_when_its_link_points_elsewhere_is_refused(tmp_path: Path):
    FileBacking("book", tmp_path, SIZE)
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("/etc/passwd")
    with pytest.raises(TransferError, match="does not point to a generation"):
        FileBacking("book", tmp_path, SIZE)


def test_file_region_when_its_directory_cannot_be_made_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TransferError, match="REGION_IO"):
        FileBacking("book", tmp_path / "file" / "below", SIZE)
