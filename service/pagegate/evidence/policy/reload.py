"""A policy that follows its file: a changed file takes effect, a broken one keeps the old policy in force."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pagegate.errors import PolicyError
from pagegate.evidence.policy.load import load_policy
from pagegate.evidence.policy.model import Policy


@dataclass(frozen=True, slots=True)
class Reload:
    """What a look at the file brought."""

    policy: Policy
    """The policy in force now."""
    changed: bool
    """True when it is another than before: live sessions are to be appraised again."""
    error: PolicyError | None
    """Why the file as it is now is not in force; None when it is."""


class PolicyFile:
    """Follows one file. Not a thread: the owner calls `refresh` from time to time and on SIGHUP."""

    def __init__(self, path: Path) -> None:
        """Raises PolicyError when the first load fails: there is nothing to keep in force yet."""
        self._path = path
        self._seen = self._stamp()
        self._policy = load_policy(path)
        self._error: PolicyError | None = None

    @property
    def policy(self) -> Policy:
        return self._policy

    def refresh(self, *, force: bool = False) -> Reload:
        """Loads the file again when it changed (always when forced); never raises."""
        stamp = self._stamp()
        if stamp == self._seen and not force:
            return Reload(self._policy, False, self._error)
        self._seen = stamp
        try:
            new = load_policy(self._path)
        except PolicyError as error:
            self._error = error
            return Reload(self._policy, False, error)
        changed = new.digest != self._policy.digest
        self._policy, self._error = new, None
        return Reload(new, changed, None)

    def _stamp(self) -> tuple[int, int, int, int] | None:
        """Tells a changed file from an unchanged one, links followed; a ConfigMap swaps a link."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - one call, and Path.stat is the same
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
