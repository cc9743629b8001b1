"""Just enough TPM 2.0 to read an NV index: two commands over the kernel's character device.

Source: TCG TPM 2.0 Library, part 3, TPM2_NV_ReadPublic and TPM2_NV_Read.
"""

from __future__ import annotations

import struct
from typing import Protocol

from pagegate.errors import PlatformError

_NO_SESSIONS = 0x8001
_SESSIONS = 0x8002
_NV_READ = 0x0000014E
_NV_READ_PUBLIC = 0x00000169
_OWNER = 0x40000001
_EMPTY_PASSWORD = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)
"""Authorisation area: its size, then a password session with no nonce, no attributes, no password."""
_HEADER = struct.Struct(">HII")
"""Tag, size of the whole message, command or response code."""
_PUBLIC = struct.Struct(">HIHIH")
"""TPM2B_NV_PUBLIC up to the policy: size, index, name algorithm, attributes, size of the policy."""
_MAX_RESPONSE = 4096
_CHUNK = 512
"""Every TPM can give this much at once."""
_MAX_INDEX_BYTES = 16 * 1024


class TpmDevice(Protocol):
    """An unbuffered file whose write takes one command and whose read gives its response."""

    def write(self, data: bytes, /) -> int | None: ...

    def read(self, size: int, /) -> bytes | None: ...


def read_nv_index(device: TpmDevice, index: int) -> bytes:
    """Reads an NV index that the owner (empty password) may read. Raises PlatformError TPM_..."""
    total = _index_size(device, index)
    content = b""
    while len(content) < total:
        wanted = min(_CHUNK, total - len(content))
        command = struct.pack(">II", _OWNER, index) + _EMPTY_PASSWORD + struct.pack(">HH", wanted, len(content))
        answer = _transmit(device, _SESSIONS, _NV_READ, command)
        # The size of the parameters comes first, then the data with its own size, then the session.
        chunk = answer[6 : 6 + wanted]
        if answer[4:6] != wanted.to_bytes(2, "big") or len(chunk) != wanted:
            raise _malformed(f"index 0x{index:08x} did not give the {wanted} bytes at {len(content)}")
        content += chunk
    return content


def _index_size(device: TpmDevice, index: int) -> int:
    answer = _transmit(device, _NO_SESSIONS, _NV_READ_PUBLIC, struct.pack(">I", index))
    try:
        policy_size = _PUBLIC.unpack_from(answer)[4]
        (size,) = struct.unpack_from(">H", answer, _PUBLIC.size + policy_size)
    except struct.error:
        raise _malformed(f"the public area of index 0x{index:08x} is cut short") from None
    if not 0 < size <= _MAX_INDEX_BYTES:
        raise _malformed(f"index 0x{index:08x} has {size} bytes, the limit is {_MAX_INDEX_BYTES}")
    return int(size)


def _transmit(device: TpmDevice, tag: int, code: int, body: bytes) -> bytes:
    """Sends one command; returns what follows the header of its response."""
    try:
        device.write(_HEADER.pack(tag, _HEADER.size + len(body), code) + body)
        response = device.read(_MAX_RESPONSE) or b""
    except OSError as error:
        raise PlatformError("TPM_UNAVAILABLE", f"the TPM does not answer: {error}; see the kernel log") from error
    if len(response) < _HEADER.size:
        raise _malformed(f"a response has {len(response)} bytes")
    _, size, result = _HEADER.unpack_from(response)
    if result:
        raise PlatformError(
            "TPM_REFUSED",
            f"the TPM refused command 0x{code:x} with code 0x{result:x}; is there such an NV index, and may the owner "
            "read it without a password?",
        )
    if size != len(response):
        raise _malformed(f"a response of {len(response)} bytes says it has {size}")
    return response[_HEADER.size :]


def _malformed(why: str) -> PlatformError:
    return PlatformError("TPM_RESPONSE_MALFORMED", f"the TPM answered out of format: {why}")
