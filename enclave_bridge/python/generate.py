"""Make the C source of a binding of the enclave bridge from its public headers.

Usage: generate.py INCLUDE_DIR OUTPUT MODULE HEADER... Run by CMake, once for the bridge in process and once for the
isolated one. cffi reads declarations but has no preprocessor,
so the header is reduced to what it reads: no directives, no attributes, array lengths as numbers, and
the status enumeration expanded from its table.
"""

import re
import sys
from pathlib import Path

from cffi import FFI


def declarations(include: Path, headers: list[str]) -> str:
    """The headers as cffi reads them."""
    text = "".join((include / header).read_text() for header in headers)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
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
    include, output, module, *headers = sys.argv[1:]
    ffi = FFI()
    ffi.cdef(declarations(Path(include), headers))
    ffi.set_source(f"enclave_bridge.{module}", "".join(f'#include "{header}"\n' for header in headers))
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main()
