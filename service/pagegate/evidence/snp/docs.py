"""Keeps docs/verification.md true: `python -m pagegate.evidence.snp.docs [--check] docs/verification.md tests`.

The table between the two markers is made from the checks themselves, and from the tests that are marked
`@pytest.mark.proves("CODE")`. With --check nothing is written; the exit code is 1 when the table is out of date
or a check has no test that proves that it fails closed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from pagegate.evidence.snp.catalogue import entries

BEGIN: Final = "<!-- checks: made by python -m pagegate.evidence.snp.docs, do not edit -->"
END: Final = "<!-- end of checks -->"


def proofs(tests: Path) -> Mapping[str, tuple[str, ...]]:
    """Reason code -> names of the tests that are marked to prove it."""
    found: dict[str, list[str]] = {}
    for path in sorted(tests.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for code in _marked(node):
                    found.setdefault(code, []).append(f"{path.relative_to(tests.parent)}::{node.name}")
    return {code: tuple(names) for code, names in found.items()}


def _marked(function: ast.FunctionDef) -> Iterator[str]:
    for decorator in function.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Attribute)
            and decorator.func.attr == "proves"
        ):
            yield from (str(one.value) for one in decorator.args if isinstance(one, ast.Constant))


def table(proven: Mapping[str, Sequence[str]]) -> str:
    """The Markdown table of all checks."""
    lines = ["| Stage | Reason code | Demands | Source | Proven by |", "| --- | --- | --- | --- | --- |"]
    for one in entries():
        names = "<br>".join(f"`{name}`" for name in proven.get(one.code, ())) or "**nothing**"
        lines.append(f"| {one.stage} | `{one.code}` | {one.summary} | {one.source} | {names} |")
    return "\n".join(lines)


def unproven(proven: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Codes without a test."""
    return tuple(one.code for one in entries() if one.code not in proven)


def updated(document: str, proven: Mapping[str, Sequence[str]]) -> str:
    """The document with the table of now. Raises ValueError when it lacks the markers."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError("the document lacks the markers around the table")
    return f"{head}{BEGIN}\n{table(proven)}\n{END}{tail}"


def main(arguments: Sequence[str]) -> int:
    """Writes or checks the table; returns the exit code."""
    check_only = "--check" in arguments
    document, tests = (Path(one) for one in arguments if one != "--check")
    proven = proofs(tests)
    text = updated(document.read_text(), proven)
    missing = unproven(proven)
    for code in missing:
        print(f"{code}: no test is marked to prove it", file=sys.stderr)  # noqa: T201
    if not check_only:
        document.write_text(text)
    elif document.read_text() != text:
        print(f"{document}: out of date; run python -m pagegate.evidence.snp.docs {document} {tests}", file=sys.stderr)  # noqa: T201
        return 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
