"""The server's own read-only status page. It works without any collector and loads nothing external."""

from pagegate.status.model import (
    Refusal,
    RegionStatus,
    ServerState,
    ServerStatus,
    SessionStatus,
    StatusSource,
    ThroughputPoint,
)
from pagegate.status.server import StatusPage

__all__ = [
    "Refusal",
    "RegionStatus",
    "ServerState",
    "ServerStatus",
    "SessionStatus",
    "StatusPage",
    "StatusSource",
    "ThroughputPoint",
]
