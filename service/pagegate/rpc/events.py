"""What a server tells its audit log and status page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One thing that happened. `details` never holds a secret or page data."""

    kind: str
    """"start" (a region was opened), "policy", "shadow", "verdict", "grant", "refusal", "commit" or "read"."""
    subject: str
    """Policy identity of the peer, or its address before it has one; the region's name of a "start"."""
    details: Mapping[str, str | int | bool] = field(default_factory=dict)


Observer = Callable[[ServerEvent], None]


def ignore(_event: ServerEvent) -> None:
    """The observer of a server that keeps no log."""
