"""A strict reader of DER (X.690), just enough for certificates.

Why not `cryptography.x509`: every VCEK and VLEK has serial number 0, which RFC 5280 forbids; that library
warns today and announces to refuse such certificates.
"""

from __future__ import annotations

from dataclasses import dataclass

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, OID = 0x01, 0x02, 0x03, 0x04, 0x06
UTF8_STRING, PRINTABLE_STRING, IA5_STRING = 0x0C, 0x13, 0x16
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
SEQUENCE, SET = 0x30, 0x31


class DerError(ValueError):
    """The bytes are not the DER that was expected."""


@dataclass(frozen=True, slots=True)
class Node:
    """One tag-length-value: `data[start:end]` whole, `data[body:end]` its contents."""

    data: bytes
    tag: int
    start: int
    body: int
    end: int

    @property
    def raw(self) -> bytes:
        """Tag, length and contents."""
        return self.data[self.start : self.end]

    @property
    def content(self) -> bytes:
        """Contents only."""
        return self.data[self.body : self.end]

    def expect(self, *tags: int) -> Node:
        """Returns itself when its tag is one of `tags`."""
        if self.tag not in tags:
            raise DerError(f"tag 0x{self.tag:02x} at offset {self.start}, expected {' or '.join(hex(t) for t in tags)}")
        return self

    def children(self) -> list[Node]:
        """The nodes inside; they fill the contents exactly."""
        nodes = []
        offset = self.body
        while offset < self.end:
            node = _node(self.data, offset, self.end)
            nodes.append(node)
            offset = node.end
        return nodes


def read_whole(data: bytes) -> Node:
    """Reads one node that fills `data` exactly."""
    node = _node(data, 0, len(data))
    if node.end != len(data):
        raise DerError(f"{len(data) - node.end} bytes after the end of the structure")
    return node


def read_small_integer(node: Node) -> int:
    """An INTEGER of 0..255 in minimal form."""
    content = node.expect(INTEGER).content
    minimal = (len(content) == 1 and content[0] < 0x80) or (
        len(content) == 2 and content[0] == 0 and content[1] >= 0x80
    )
    if not minimal:
        raise DerError(f"INTEGER {content[:8].hex()} at offset {node.start} is not 0..255 in minimal form")
    return content[-1]


def _node(data: bytes, start: int, limit: int) -> Node:
    if limit - start < 2:
        raise DerError(f"truncated at offset {start}")
    tag, length, body = data[start], data[start + 1], start + 2
    if tag & 0x1F == 0x1F:
        raise DerError(f"multi-byte tag at offset {start}")
    if length >= 0x80:
        width = length & 0x7F
        if not 1 <= width <= 4 or limit - body < width:
            raise DerError(f"length of {width} bytes at offset {start}")
        length = int.from_bytes(data[body : body + width], "big")
        if length < 0x80 or length >> (8 * (width - 1)) == 0:
            raise DerError(f"length not in minimal form at offset {start}")
        body += width
    if length > limit - body:
        raise DerError(f"{length} bytes announced at offset {start}, {limit - body} left")
    return Node(data, tag, start, body, body + length)
