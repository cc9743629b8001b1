"""Reading an NV index: from a real software TPM where one is installed, and from one that answers nonsense."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagegate.errors import PlatformError
from pagegate.platforms.tpm import TpmDevice, read_nv_index

INDEX = 0x01400001
OWNER = 0x40000001
PASSWORD = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)
OWNER_MAY_READ_AND_WRITE = 1 << 17 | 1 << 1


def command(code: int, body: bytes) -> bytes:
    return struct.pack(">HII", 0x8002, 10 + len(body), code) + body


@pytest.fixture
def software_tpm(tmp_path: Path) -> Iterator[TpmDevice]:
    """A real TPM 2.0 (swtpm), started up."""
    program = shutil.which("swtpm")
    if program is None:
        pytest.skip("swtpm is not installed")
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, its:
        arguments = ["--tpm2", "--tpmstate", f"dir={tmp_path}", "--flags", "not-need-init,startup-clear"]
        command_line = [program, "socket", *arguments, "--fd", str(its.fileno())]
        with subprocess.Popen(command_line, pass_fds=[its.fileno()]) as child:
            ours.settimeout(20)
            with ours.makefile("rwb", buffering=0) as device:
                yield device
            child.kill()


def put(device: TpmDevice, content: bytes) -> None:
    """Defines the index and writes its content."""
    public = struct.pack(">IHIHH", INDEX, 0x000B, OWNER_MAY_READ_AND_WRITE, 0, len(content))
    define = struct.pack(">I", OWNER) + PASSWORD + struct.pack(">H", 0) + struct.pack(">H", len(public)) + public
    requests = [command(0x12A, define)]
    for at in range(0, len(content), 512):
        chunk = content[at : at + 512]
        body = (
            struct.pack(">II", OWNER, INDEX) + PASSWORD + struct.pack(">H", len(chunk)) + chunk + struct.pack(">H", at)
        )
        requests.append(command(0x137, body))
    for request in requests:
        device.write(request)
        answer = device.read(4096)
        assert answer is not None
        assert answer[6:10] == bytes(4), answer.hex()


def test_nv_index_of_a_real_tpm_is_read_whole(software_tpm: TpmDevice) -> None:
    content = bytes(at * 7 % 251 for at in range(1500))
    put(software_tpm, content)

    assert read_nv_index(software_tpm, INDEX) == content


def test_nv_index_when_a_real_tpm_has_none_is_refused_with_its_code(software_tpm: TpmDevice) -> None:
    with pytest.raises(PlatformError, match="code 0x18b") as caught:
        read_nv_index(software_tpm, INDEX)
    assert caught.value.reason == "TPM_REFUSED"


class Answers:
    """A TPM that gives these answers whatever it is asked."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = iter(answers)

    def write(self, data: bytes) -> int:
        return len(data)

    def read(self, size: int) -> bytes:
        return next(self._answers)


def response(body: bytes, *, longer: int = 0) -> bytes:
    return struct.pack(">HII", 0x8001, 10 + len(body) + longer, 0) + body


def public(size: int) -> bytes:
    return response(struct.pack(">HIHIHH", 14, INDEX, 0x000B, 0, 0, size))


@pytest.mark.parametrize(
    "answers",
    [
        [b""],
        [b"short"],
        [response(b"", longer=1)],
        [response(b"\0" * 4)],
        [response(struct.pack(">HIHIH", 14, INDEX, 0x000B, 0, 0xFFFF))],
        [public(0)],
        [public(0xFFFF)],
        [public(4), response(struct.pack(">IH", 5, 3) + b"abc")],
        [public(4), response(struct.pack(">IH", 6, 4) + b"abc")],
        [public(4), response(b"")],
    ],
    ids=["nothing", "header", "size", "public", "policy", "empty", "huge", "fewer", "cut", "no data"],
)
def test_nv_index_when_the_tpm_answers_nonsense_is_refused(answers: list[bytes]) -> None:
    with pytest.raises(PlatformError) as caught:
        read_nv_index(Answers(*answers), INDEX)
    assert caught.value.reason == "TPM_RESPONSE_MALFORMED"


def test_nv_index_when_the_device_fails_is_refused() -> None:
    class Broken(Answers):
        def read(self, size: int) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(PlatformError, match="Input/output error") as caught:
        read_nv_index(Broken(), INDEX)
    assert caught.value.reason == "TPM_UNAVAILABLE"
