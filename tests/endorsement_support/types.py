"""Types of the fixtures."""

from __future__ import annotations

from typing import Any, Protocol

from pagegate.endorsements import CachedSource, EndorsementSettings
from pagegate.endorsements.kds import KdsClient


class MakeSettings(Protocol):
    """Settings for the test's KDS, with changes."""

    def __call__(self, **changes: Any) -> EndorsementSettings: ...


class MakeClient(Protocol):
    """A KDS client on the test's clock; `draw` is what the jitter draws."""

    def __call__(self, *, draw: float = 0.5, on_wait: Any = None, **changes: Any) -> KdsClient: ...


class MakeSource(Protocol):
    """A source with its own connection to the test's cache file."""

    def __call__(self, **changes: Any) -> CachedSource: ...
