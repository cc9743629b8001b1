"""Coverage-guided fuzzing, outside CI. Needs atheris: `uv pip install atheris`.

python tests/fuzz/fuzz_evidence.py TARGET [libFuzzer options], for example: appraise -runs=1000000 -max_len=64
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

with atheris.instrument_imports(include=["pagegate.evidence"]):
    from targets import TARGETS, bases


def main() -> None:
    """Runs one target until libFuzzer's options say stop."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz_evidence.py {{{','.join(TARGETS)}}} [libFuzzer options]")
    target = TARGETS[sys.argv.pop(1)]
    bases()
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
