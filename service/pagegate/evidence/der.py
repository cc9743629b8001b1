"""A strict reader of DER (X.690), just enough for certificates and revocation lists.

Why not `cryptography.x509`: AMD gives every VCEK and VLEK the serial number 0, which RFC 5280 forbids; that
library warns today and announces that it will refuse such certificates. Signatures are checked by it all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
ENUMERATED, UTF8_STRING, PRINTABLE_STRING, IA5_STRING = 0x0A, 0x0C, 0x13, 0x16
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
SEQUENCE, SET = 0x30, 0x31
MAX_INTEGER_BYTES = 64


class DerError(ValueError):
    """The bytes are not the DER that was expected."""


@dataclass(frozen=True, slots=True)
class Node:
    """One tag-length-value."""

    tag: int
    content: bytes
    raw: bytes
    """Tag, length and content."""

    def children(self) -> tuple[Node, ...]:
        """The nodes inside; they fill the content exactly."""
        nodes = []
        offset = 0
        while offset < len(self.content):
            node = _read(self.content, offset)
            nodes.append(node)
            offset += len(node.raw)
        return tuple(nodes)

    def expect(self, *tags: int) -> Node:
        """Returns itself when its tag is one of `tags`."""
        if self.tag not in tags:
            raise DerError(f"tag 0x{self.tag:02x}, expected {' or '.join(f'0x{tag:02x}' for tag in tags)}")
        return self


def read_whole(data: bytes) -> Node:
    """Reads one node that fills `data` exactly."""
    node = _read(data, 0)
    if len(node.raw) != len(data):
        raise DerError(f"{len(data) - len(node.raw)} bytes after the end of the structure")
    return node


def read_integer(node: Node) -> int:
    """An INTEGER of at most 64 bytes in minimal form."""
    content = node.expect(INTEGER, ENUMERATED).content
    if not 1 <= len(content) <= MAX_INTEGER_BYTES:
        raise DerError(f"INTEGER of {len(content)} bytes, allowed are 1 to {MAX_INTEGER_BYTES}")
    if len(content) > 1 and content[0] in (0, 0xFF) and content[0] >> 7 == content[1] >> 7:
        raise DerError(f"INTEGER {content[:4].hex()} is not in minimal form")
    return int.from_bytes(content, "big", signed=True)


def read_boolean(node: Node) -> bool:
    """A BOOLEAN: 0x00 or 0xff."""
    content = node.expect(BOOLEAN).content
    if content not in (b"\x00", b"\xff"):
        raise DerError(f"BOOLEAN {content[:4].hex()}, allowed are 00 and ff")
    return content == b"\xff"


def read_bits(node: Node) -> bytes:
    """A BIT STRING that is whole bytes."""
    content = node.expect(BIT_STRING).content
    if not content or content[0] != 0:
        raise DerError("BIT STRING is not a whole number of bytes")
    return content[1:]


def read_oid(node: Node) -> str:
    """An OBJECT IDENTIFIER in dotted form."""
    content = node.expect(OID).content
    if not 1 <= len(content) <= MAX_INTEGER_BYTES or content[-1] & 0x80:
        raise DerError("OBJECT IDENTIFIER is empty, too long or truncated")
    arcs: list[int] = []
    value = 0
    fresh = True
    for byte in content:
        if fresh and byte == 0x80:
            raise DerError("OBJECT IDENTIFIER is not in minimal form")
        value = value << 7 | (byte & 0x7F)
        fresh = byte < 0x80
        if fresh:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(str(arc) for arc in (first, arcs[0] - 40 * first, *arcs[1:]))


def read_text(node: Node) -> str:
    """A string of one of the common types."""
    content = node.expect(UTF8_STRING, PRINTABLE_STRING, IA5_STRING).content
    try:
        return content.decode("utf-8" if node.tag == UTF8_STRING else "ascii")
    except UnicodeDecodeError as error:
        raise DerError(f"text is not {error.encoding}") from None


def _read(data: bytes, start: int) -> Node:
    body = start + 2
    if len(data) < body:
        raise DerError("truncated")
    tag, length = data[start], data[start + 1]
    if tag & 0x1F == 0x1F:
        raise DerError("multi-byte tags are not used in certificates")
    if length >= 0x80:
        width = length & 0x7F
        if not 1 <= width <= 4 or len(data) - body < width:
            raise DerError(f"a length of {width} bytes")
        length = int.from_bytes(data[body : body + width], "big")
        if length < 0x80 or length >> (8 * (width - 1)) == 0:
            raise DerError("length not in minimal form")
        body += width
    if length > len(data) - body:
        raise DerError(f"{length} bytes announced, {len(data) - body} left")
    return Node(tag, data[body : body + length], data[start : body + length])
