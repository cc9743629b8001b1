"""Verification as data: a check is a small named function with its reason code and its source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from pagegate.evidence.model import Failure

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found wrong, without the parts that are the same for each finding of that check."""

    field: str
    expected: str
    found: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Check(Generic[Subject]):
    """One check: its stable reason code, what it demands in a line, who asks for it, and the check itself."""

    code: str
    summary: str
    source: str
    find: Callable[[Subject], Iterable[Finding]]

    def __call__(self, subject: Subject) -> Iterator[Failure]:
        """Yields a Failure for each thing wrong; nothing when the check holds."""
        for finding in self.find(subject):
            yield Failure(self.code, finding.field, finding.expected, finding.found, self.source, finding.hint)


def check(code: str, source: str) -> Callable[[Callable[[Subject], Iterable[Finding]]], Check[Subject]]:
    """Makes a Check of a function; the first line of its docstring is the summary."""

    def make(function: Callable[[Subject], Iterable[Finding]]) -> Check[Subject]:
        return Check(code, (function.__doc__ or "").strip().splitlines()[0], source, function)

    return make


def run(checks: Iterable[Check[Subject]], subject: Subject) -> tuple[Failure, ...]:
    """Runs all checks; a failure of one does not keep the others from running."""
    return tuple(failure for one in checks for failure in one(subject))
