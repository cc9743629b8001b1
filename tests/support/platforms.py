"""Simulated guests by label."""

from __future__ import annotations

from typing import Any

from pagegate.platforms.simulated import SimulatedPlatform, SimulatedRoot, measurement_of

SERVER, CLIENT, STRANGER = "server", "client", "stranger"
"""Labels of the guests that tests use; nobody's policy knows the stranger."""


class Guests:
    """Makes the guest of a label: the same label gives the same chip and measurement in every process."""

    def __init__(self, root: SimulatedRoot) -> None:
        self.root = root

    def __call__(self, label: str, *, chip: str | None = None, tcb: Any = None, **kw: Any) -> SimulatedPlatform:
        """`chip` defaults to the label; `kw` are SimulatedPlatform's own."""
        kw.setdefault("measurement", self.measurement(label))
        return SimulatedPlatform(self.root.chip(chip or label, tcb), **kw)

    @staticmethod
    def measurement(label: str) -> bytes:
        """The 48-byte measurement of a label."""
        return measurement_of(label.encode())
