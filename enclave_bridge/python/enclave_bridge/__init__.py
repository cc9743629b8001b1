"""Binding of the enclave bridge, the trusted part of pagegate.

Python holds handles: no call returns a private key, a session key or a page that is not verified.
Any object with the buffer protocol is taken without a copy; every call releases the GIL.
"""

from .channel import (
    RECORDS_KIND,
    Channel,
    ChannelMessage,
    ChannelRecords,
    channel_capacity,
    create_channel,
    format_channel,
)
from .errors import BridgeStatusError, StatusInfo, all_statuses, status_info
from .guards import Guard, PageRange, Sealing, SealingError, SnpFailure, TamperedPageError, Verification
from .handles import HARDENING, Bridge, Handshake, IsolatedBridge, Session, Source, Transfer, parse_header
from .results import (
    BINDING_SIZE,
    HEADER_SIZE,
    NONCE_SIZE,
    PAGE_SIZE,
    RECORD_SIZE,
    SESSION_ID_SIZE,
    TAG_SIZE,
    TRANSFER_ID_SIZE,
    BridgeInfo,
    MacPurpose,
    OpenResult,
    RecordHeader,
    Role,
    SealResult,
    SessionStats,
    Suite,
)

__all__ = [
    "BINDING_SIZE",
    "HARDENING",
    "HEADER_SIZE",
    "NONCE_SIZE",
    "PAGE_SIZE",
    "RECORDS_KIND",
    "RECORD_SIZE",
    "SESSION_ID_SIZE",
    "TAG_SIZE",
    "TRANSFER_ID_SIZE",
    "Bridge",
    "BridgeInfo",
    "BridgeStatusError",
    "Channel",
    "ChannelMessage",
    "ChannelRecords",
    "Guard",
    "Handshake",
    "IsolatedBridge",
    "MacPurpose",
    "OpenResult",
    "PageRange",
    "RecordHeader",
    "Role",
    "SealResult",
    "Sealing",
    "SealingError",
    "Session",
    "SessionStats",
    "SnpFailure",
    "Source",
    "StatusInfo",
    "Suite",
    "TamperedPageError",
    "Transfer",
    "Verification",
    "all_statuses",
    "channel_capacity",
    "create_channel",
    "format_channel",
    "parse_header",
    "status_info",
]
