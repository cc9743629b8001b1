"""Make the C source of `enclave_bridge._native` from the public header.

Usage: generate.py INCLUDE_DIR OUTPUT. Run by CMake. cffi reads declarations but has no preprocessor,
so the header is reduced to what it reads: no directives, no attributes, array lengths as numbers, and
the status enumeration expanded from its table.
"""

import re
import sys
from pathlib import Path

from cffi import FFI


def declarations(include: Path) -> str:
    """The header as cffi reads it."""
    text = re.sub(r"/\*.*?\*/", "", (include / "enclave_bridge.h").read_text(), flags=re.DOTALL)
    numbers = {
        name: str(eval(value.replace("UINT64_C", "").replace("u", ""), {"__builtins__": {}}))  # noqa: S307 our own header
        for name, value in re.findall(r"^#define (EB_\w+)[ \t]+([(\d].*)$", text, flags=re.MULTILINE)
    }
    table = (include / "eb_status.def").read_text()
    statuses = "".join(
        f"  {name} = {number},\n" for name, number in re.findall(r"^X\((\w+), (\d+),", table, re.MULTILINE)
    )
    text = text.replace('#include "eb_status.def"\n', statuses)
    text = re.sub(r"#ifdef __cplusplus\n.*?#endif\n", "", text, flags=re.DOTALL)
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\b(EB_API|EB_MUST_USE)\b", "", text)
    text = re.sub(r"\[(EB_\w+)\]", lambda found: f"[{numbers[found[1]]}]", text)
    constants = "".join(f"#define {name} {value}\n" for name, value in numbers.items())
    return constants + text


def main() -> None:
    """Write the source."""
    include, output = (Path(argument) for argument in sys.argv[1:])
    ffi = FFI()
    ffi.cdef(declarations(include))
    ffi.set_source("enclave_bridge._native", '#include "enclave_bridge.h"')
    ffi.emit_c_code(str(output))


if __name__ == "__main__":
    main()
