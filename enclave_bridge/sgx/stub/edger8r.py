"""Stands in for Intel's sgx_edger8r where the SDK is not installed: the border's code from the EDL file.

    edger8r.py FILE.edl OUTPUT_DIR

Writes FILE_t.h, FILE_t.c (inside: checks, copies, calls) and FILE_u.h, FILE_u.c (outside). It knows what
enclave_bridge.edl uses and refuses the rest: ECALLs that return int; [in], [out] with size=, count= or
neither, [string] and [user_check]; numbers by value. Its checks are Intel's: the parameter block and every
buffer are wholly outside, sizes do not overflow, buffers are copied in once and sizes are read once.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ECALL = re.compile(r"public\s+int\s+(\w+)\s*\(([^;]*)\)\s*;")
PARAMETER = re.compile(r"^(?:\[(?P<attributes>[^]]*)\]\s*)?(?P<type>.*?)\s*(?P<star>\*?)\s*(?P<name>\w+)$")
KNOWN = {"in", "out", "string", "user_check", "size", "count"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of an ECALL."""

    type: str
    name: str
    pointer: bool
    attributes: dict[str, str]

    @property
    def declaration(self) -> str:
        """As C has it."""
        return f"{self.type} {'*' if self.pointer else ''}{self.name}"

    @property
    def copied(self) -> bool:
        """Whether the border copies what it points at."""
        return self.pointer and "user_check" not in self.attributes

    @property
    def object(self) -> str:
        """The type that it points at, to be written."""
        return self.type.removeprefix("const ")


@dataclass(frozen=True)
class Ecall:
    """One function of the trusted block."""

    name: str
    parameters: list[Parameter]

    @property
    def declarations(self) -> str:
        """Its parameters, as C has them."""
        return ", ".join(each.declaration for each in self.parameters) or "void"


def parse_parameter(text: str) -> Parameter:
    """One parameter; what the stand-in does not know ends the program."""
    match = PARAMETER.match(" ".join(text.split()))
    if match is None:
        raise SystemExit(f"edger8r: not understood: {text}")
    pairs = (each.partition("=") for each in (match["attributes"] or "").replace(" ", "").split(",") if each)
    found = Parameter(match["type"], match["name"], bool(match["star"]), {key: value for key, _, value in pairs})
    if set(found.attributes) - KNOWN or found.pointer != bool(set(found.attributes) & {"in", "out", "user_check"}):
        raise SystemExit(f"edger8r: attributes not understood: {text}")
    return found


def split_parameters(text: str) -> list[str]:
    """At the commas that are not in brackets."""
    return [each for each in re.split(r",(?![^\[]*\])", text) if each.strip() not in {"", "void"}]


def parse(text: str) -> tuple[list[str], list[Ecall]]:
    """The included headers and the ECALLs."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    headers = re.findall(r'include\s+"([^"]+)"', text)
    return headers, [
        Ecall(name, [parse_parameter(each) for each in split_parameters(rest)]) for name, rest in ECALL.findall(text)
    ]


def block(ecall: Ecall) -> str:
    """The parameter block, which crosses the border."""
    fields = "".join(f"  {each.declaration};\n" for each in ecall.parameters)
    lengths = "".join(f"  size_t {each.name}_len;\n" for each in ecall.parameters if "string" in each.attributes)
    return f"typedef struct {{\n  int returned;\n{fields}{lengths}}} ms_{ecall.name};\n\n"


def size_of(each: Parameter) -> tuple[str, str]:
    """How many objects of what size a copied parameter has."""
    if "string" in each.attributes:
        return f"ms.{each.name}_len", "1"
    number = each.attributes.get("size") or each.attributes.get("count") or "1"
    number = number if number.isdigit() else f"ms.{number}"
    return number, "1" if "size" in each.attributes else f"sizeof(*ms.{each.name})"


def trusted_bridge(ecall: Ecall) -> str:
    """Checks and copies in, calls, copies out."""
    copied = [each for each in ecall.parameters if each.copied]
    out = [f"static sgx_status_t bridge_{ecall.name}(void *block) {{", f"  ms_{ecall.name} ms;"]
    out += ["  sgx_status_t status = SGX_SUCCESS;", "  int returned = 0;"]
    out += [f"  {each.object} *copy_{each.name} = NULL;\n  size_t size_{each.name} = 0;" for each in copied]
    out += ["  if (block == NULL || !sgx_is_outside_enclave(block, sizeof ms)) return SGX_ERROR_INVALID_PARAMETER;"]
    out += ["  sgx_lfence();", "  memcpy(&ms, block, sizeof ms);"]
    for each in copied:
        count, unit = size_of(each)
        out += [
            f"  status = border_size(ms.{each.name}, {count}, {unit}, &size_{each.name});",
            "  if (status != SGX_SUCCESS) goto done;",
        ]
    out += ["  sgx_lfence();"]
    for each in copied:
        source = f"ms.{each.name}" if "in" in each.attributes else "NULL"
        out += [
            f"  status = border_copy((void **)&copy_{each.name}, {source}, size_{each.name});",
            "  if (status != SGX_SUCCESS) goto done;",
        ]
        if "string" in each.attributes:
            out += [f"  if (size_{each.name} > 0) copy_{each.name}[size_{each.name} - 1] = 0;"]
    given = ", ".join(f"copy_{each.name}" if each.copied else f"ms.{each.name}" for each in ecall.parameters)
    out += [
        f"  returned = {ecall.name}({given});",
        f"  memcpy(&((ms_{ecall.name} *)block)->returned, &returned, sizeof returned);",
    ]
    out += [
        f"  if (size_{each.name} > 0) memcpy(ms.{each.name}, copy_{each.name}, size_{each.name});"
        for each in copied
        if "out" in each.attributes
    ]
    out += [
        *(["done:"] if copied else []),
        *(f"  free(copy_{each.name});" for each in copied),
        "  return status;",
        "}",
        "",
        "",
    ]
    return "\n".join(out)


BORDER = """
/* Bytes of a buffer, which must be outside; 0 for NULL. */
static sgx_status_t border_size(const void *pointer, size_t count, size_t unit, size_t *size) {
  if (pointer == NULL || count == 0) return SGX_SUCCESS;
  if (count > SIZE_MAX / unit || !sgx_is_outside_enclave(pointer, count * unit)) return SGX_ERROR_INVALID_PARAMETER;
  *size = count * unit;
  return SGX_SUCCESS;
}

/* Memory inside, filled from `source` or, when that is NULL, with zeros. */
static sgx_status_t border_copy(void **copy, const void *source, size_t size) {
  if (size == 0) return SGX_SUCCESS;
  *copy = calloc(1, size);
  if (*copy == NULL) return SGX_ERROR_OUT_OF_MEMORY;
  if (source != NULL) memcpy(*copy, source, size);
  return SGX_SUCCESS;
}

"""


def trusted(name: str, ecalls: list[Ecall]) -> str:
    """FILE_t.c."""
    head = "#include <sgx_lfence.h>\n#include <sgx_trts.h>\n#include <stdint.h>\n#include <stdlib.h>\n#include <string.h>\n"
    rows = "".join(f"    {{(void *)bridge_{each.name}, 0, 0}},\n" for each in ecalls)
    table = (
        '__attribute__((visibility("default"))) '
        "const struct {\n  size_t nr_ecall;\n  struct {\n    void *ecall_addr;\n    uint8_t is_priv, is_switchless;\n"
        f"  }} ecall_table[{len(ecalls)}];\n}} g_ecall_table = {{\n  {len(ecalls)},\n  {{\n{rows}  }}\n}};\n"
    )
    bodies = "".join(block(each) + trusted_bridge(each) for each in ecalls)
    return f'#include "{name}_t.h"\n{head}{BORDER}{bodies}{table}'


def untrusted_proxy(index: int, ecall: Ecall) -> str:
    """Fills the parameter block and enters."""
    fill = "".join(f"  ms.{each.name} = {each.name};\n" for each in ecall.parameters)
    fill += "".join(
        f"  ms.{each.name}_len = {each.name} != NULL ? strlen({each.name}) + 1 : 0;\n"
        for each in ecall.parameters
        if "string" in each.attributes
    )
    return (
        f"{proxy_prototype(ecall)} {{\n  ms_{ecall.name} ms;\n  ms.returned = 0;\n{fill}"
        f"  sgx_status_t status = sgx_ecall(eid, {index}, NULL, &ms);\n"
        "  if (status == SGX_SUCCESS && retval != NULL) *retval = ms.returned;\n  return status;\n}\n\n"
    )


def proxy_prototype(ecall: Ecall) -> str:
    """The function that the application calls."""
    rest = "".join(f", {each.declaration}" for each in ecall.parameters)
    return f"sgx_status_t {ecall.name}(sgx_enclave_id_t eid, int *retval{rest})"


def main(edl: str, output: str) -> None:
    """Write the four files."""
    path, folder = Path(edl), Path(output)
    headers, ecalls = parse(path.read_text())
    includes = "".join(f'#include "{each}"\n' for each in headers)
    name = path.stem
    folder.mkdir(parents=True, exist_ok=True)
    prototypes = "".join(f"int {each.name}({each.declarations});\n" for each in ecalls)
    (folder / f"{name}_t.h").write_text(f"#pragma once\n#include <sgx_error.h>\n{includes}\n{prototypes}")
    (folder / f"{name}_t.c").write_text(trusted(name, ecalls))
    proxies = "".join(f"{proxy_prototype(each)};\n" for each in ecalls)
    (folder / f"{name}_u.h").write_text(f"#pragma once\n#include <sgx_urts.h>\n{includes}\n{proxies}")
    bodies = "".join(block(each) + untrusted_proxy(i, each) for i, each in enumerate(ecalls))
    (folder / f"{name}_u.c").write_text(
        f'#include "{name}_u.h"\n#include <sgx_edger8r.h>\n#include <string.h>\n\n{bodies}'
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
