"""Snapshots that tell by themselves whether they are whole: every page names its snapshot and its place."""

from __future__ import annotations

PAGE = 4096


def make(number: int, pages: int) -> bytes:
    """Snapshot `number` (from 1)."""
    return b"".join(_page(number, index) for index in range(pages))


def number_of(data: bytes) -> int:
    """Which snapshot this is, 0 for the empty region. Raises AssertionError when it is not one whole snapshot."""
    if not any(data):
        return 0
    number = int.from_bytes(data[:8], "big")
    mixed = [
        index for index in range(len(data) // PAGE) if data[index * PAGE : (index + 1) * PAGE] != _page(number, index)
    ]
    assert not mixed, f"pages {mixed[:8]}... are not of snapshot {number}"
    return number


def _page(number: int, index: int) -> bytes:
    return (number.to_bytes(8, "big") + index.to_bytes(8, "big")) * (PAGE // 16)
