"""DER in canonical form only."""

from __future__ import annotations

import pytest

from pagegate.evidence import der


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x1f\x81\x01\x00", "multi-byte tag"),
        (b"\x30\x80\x00\x00", "length of 0 bytes"),
        (b"\x30\x85\x00\x00\x00\x00\x01", "length of 5 bytes"),
        (b"\x30\x81\x01\x00", "minimal"),
        (b"\x30\x82\x00\x80" + bytes(128), "minimal"),
        (b"\x30\x03\x01", "3 bytes announced"),
    ],
)
def test_der_when_not_canonical_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(der.DerError, match=why):
        der.read_whole(data)
