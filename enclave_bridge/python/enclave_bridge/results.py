"""Values and facts of the bridge's interface."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from ._native import lib

PAGE_SIZE: int = lib.EB_PAGE_SIZE
RECORD_SIZE: int = lib.EB_RECORD_SIZE
HEADER_SIZE: int = lib.EB_RECORD_HEADER_SIZE
TAG_SIZE: int = lib.EB_TAG_SIZE
BINDING_SIZE: int = lib.EB_BINDING_SIZE
NONCE_SIZE: int = lib.EB_NONCE_SIZE
SESSION_ID_SIZE: int = lib.EB_SESSION_ID_SIZE
TRANSFER_ID_SIZE: int = lib.EB_TRANSFER_ID_SIZE


class Role(IntEnum):
    """Which side of a handshake this is."""

    CLIENT = 1
    SERVER = 2


class Suite(IntEnum):
    """Key agreement, hash and AEAD; the numbers are those of the protocol."""

    P384_SHA384_AES256GCM = 1
    P256_SHA256_AES128GCM = 2


class MacPurpose(IntEnum):
    """Which key authenticates a control message."""

    TRANSFER = 1
    RECEIPT = 2
    CONTROL = 3


@dataclass(frozen=True, slots=True)
class BridgeInfo:
    """How a bridge keeps its secrets, and how many handles are alive."""

    memory: Literal["memfd_secret", "mlock"]
    secret_bytes: int
    sessions_live: int
    handshakes_live: int
    gcm_kernel: str
    libcrypto: str
    file_io: Literal["io_uring", "pread"]
    process: int | None = None
    """Pid of an isolated bridge; None when it is in this process."""
    hardening: tuple[str, ...] = ()
    """What confines an isolated bridge, of `HARDENING`."""

    @property
    def backend(self) -> Literal["in-process", "isolated"]:
        """Where the keys are."""
        return "in-process" if self.process is None else "isolated"


@dataclass(frozen=True, slots=True)
class SealResult:
    """A sealed batch: pages, time inside the bridge, epoch and sequence number of the last record."""

    pages: int
    bad_index: int | None
    nanoseconds: int
    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True)
class OpenResult:
    """An opened batch. `pages` took effect; `bad_index` is the record that was refused, if one was.

    `epoch` and `sequence` are those of the last record that took effect (0 when none did).
    """

    pages: int
    bad_index: int | None
    nanoseconds: int
    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True)
class SessionStats:
    """Counters over the life of a session. `closed` after too many bad tags or `close`."""

    send_epoch: int
    recv_epoch: int
    sent_pages: int
    opened_pages: int
    replayed: int
    tampered: int
    refused: int
    closed: bool


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """The public fields of a record. They prove nothing before the record is opened."""

    session_id: bytes
    epoch: int
    flags: int
    sequence: int
    region: int
    reserved: int
    gpa: int
