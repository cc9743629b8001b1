"""The bridge against a peer written from docs/protocol.md alone, with pyca/cryptography's primitives.

What both sides agree on here, key schedule, labels, nonces and record format, is what the protocol says
and not only what the bridge does on both ends.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.unit.enclave_bridge.pairs import usable_kernels

from enclave_bridge import PAGE_SIZE, RECORD_SIZE, Bridge, MacPurpose, Role, Session, Suite

SESSION_ID = bytes(range(16))
PURPOSES = {MacPurpose.TRANSFER: "transfer", MacPurpose.RECEIPT: "receipt", MacPurpose.CONTROL: "control"}


class Peer:
    """A server by the book."""

    def __init__(self, suite: Suite) -> None:
        large = suite is Suite.P384_SHA384_AES256GCM
        self.curve: ec.EllipticCurve = ec.SECP384R1() if large else ec.SECP256R1()
        self.hash = hashlib.sha384 if large else hashlib.sha256
        self.algorithm = SHA384() if large else SHA256()
        self.key_size = 32 if large else 16
        self.key = ec.generate_private_key(self.curve)
        self.transcript = b""

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def absorb(self, message: bytes) -> None:
        self.transcript += struct.pack(">I", len(message)) + message

    def transcript_hash(self) -> bytes:
        return self.hash(self.transcript).digest()

    def derive(self, point: bytes) -> None:
        shared = self.key.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(self.curve, point))
        self.prk = hmac.new(self.transcript_hash(), shared, self.hash).digest()

    def expand(self, secret: bytes, label: str, size: int | None = None) -> bytes:
        size = size or self.algorithm.digest_size
        return HKDFExpand(self.algorithm, size, b"pagegate/v1 " + label.encode()).derive(secret)

    def mac(self, label: str, message: bytes) -> bytes:
        return hmac.new(self.expand(self.prk, label), message, self.hash).digest()

    def page_key(self, role: str, epoch: int) -> tuple[AESGCM, bytes]:
        secret = self.expand(self.prk, f"{role} write secret")
        for _ in range(epoch):
            secret = self.expand(secret, "next epoch")
        return AESGCM(self.expand(secret, "key", self.key_size)), self.expand(secret, "iv", 12)

    def seal(self, page: bytes, *, epoch: int, sequence: int, region: int, gpa: int) -> bytes:
        key, iv = self.page_key("server", epoch)
        header = SESSION_ID + struct.pack("<IIQIIQ", epoch, 0, sequence, region, 0, gpa)
        return header + key.encrypt(nonce(iv, sequence), page, header)


def nonce(iv: bytes, sequence: int) -> bytes:
    return bytes(a ^ b for a, b in zip(iv, bytes(4) + sequence.to_bytes(8, "big"), strict=True))


@pytest.fixture(params=list(Suite), ids=lambda suite: suite.name)
def suite(request: pytest.FixtureRequest) -> Suite:
    return Suite(request.param)


@pytest.fixture(params=usable_kernels())
def bridge(request: pytest.FixtureRequest, backend: type[Bridge]) -> Bridge:
    return backend(max_sessions=2, max_handshakes=2, gcm_kernel=request.param)


@pytest.fixture
def ends(bridge: Bridge, suite: Suite) -> tuple[Session, Peer]:
    peer, client = Peer(suite), bridge.handshake(Role.CLIENT, list(Suite))
    for message in (b"client hello", b"server hello"):
        client.absorb(message)
        peer.absorb(message)
    client.select(suite)
    for role in Role:
        label = f"pagegate/v1 {role.name.lower()} evidence".encode()
        assert client.binding(role) == hashlib.sha512(label + b"\0" + peer.transcript_hash()).digest()
    client.absorb(b"server evidence")
    peer.absorb(b"server evidence")
    peer.derive(client.public_key(suite))
    client.derive(peer.public_key)
    client.absorb(b"client evidence")
    peer.absorb(b"client evidence")
    assert client.finished() == peer.mac("client finished", peer.transcript_hash())
    client.absorb(b"client finished")
    peer.absorb(b"client finished")
    client.check_finished(peer.mac("server finished", peer.transcript_hash()))
    return client.session(SESSION_ID), peer


def test_sealed_page_when_opened_by_the_book_is_the_page(ends: tuple[Session, Peer]) -> None:
    session, peer = ends
    page = bytes(range(256)) * 16
    for epoch in range(3):
        for sequence in range(2):
            record, result = session.seal(None, region=9, first_gpa=0x7000, plain=page)
            assert (result.epoch, result.sequence) == (epoch, sequence)
            assert record[:48] == SESSION_ID + struct.pack("<IIQIIQ", epoch, 0, sequence, 9, 0, 0x7000)
            key, iv = peer.page_key("client", epoch)
            assert key.decrypt(nonce(iv, sequence), record[48:], record[:48]) == page
        session.rekey()


def test_page_sealed_by_the_book_when_opened_arrives(bridge: Bridge, ends: tuple[Session, Peer]) -> None:
    session, peer = ends
    target = bytearray(2 * PAGE_SIZE)
    transfer = bridge.transfer(b"t" * 16, region=9, base_gpa=0x7000, pages=2)
    transfer.target_memory(target)
    first, second = b"\x11" * PAGE_SIZE, b"\x22" * PAGE_SIZE
    session.open(transfer, peer.seal(second, epoch=0, sequence=0x123456, region=9, gpa=0x8000))
    session.open(transfer, peer.seal(first, epoch=1, sequence=0, region=9, gpa=0x7000))
    assert bytes(target) == first + second
    assert session.stats().recv_epoch == 1


def test_control_macs_when_made_by_the_book_agree(ends: tuple[Session, Peer]) -> None:
    session, peer = ends
    for purpose, label in PURPOSES.items():
        assert session.mac(purpose, b"message") == peer.mac(f"client {label}", b"message")
        session.check_mac(purpose, b"message", peer.mac(f"server {label}", b"message"))


def test_commit_mac_when_made_by_the_book_agrees(bridge: Bridge, ends: tuple[Session, Peer]) -> None:
    session, peer = ends
    transfer = bridge.transfer(b"t" * 16, region=9, base_gpa=0x7000, pages=8)
    records, _ = session.seal(transfer, region=9, first_gpa=0x8000, plain=bytes(3 * PAGE_SIZE))
    account = b"".join(
        struct.pack("<Q", 0x8000 + i * PAGE_SIZE) + records[(i + 1) * RECORD_SIZE - 16 : (i + 1) * RECORD_SIZE]
        for i in range(3)
    )
    message = b"commit\0" + b"t" * 16 + struct.pack("<Q", 3) + account
    assert session.commit_mac(transfer) == peer.mac("client transfer", message)
    session.check_commit_mac(transfer, peer.mac("server transfer", message))
