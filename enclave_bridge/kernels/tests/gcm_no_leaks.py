"""Checks the machine code of the wide kernels, which valgrind cannot run.

Secrets enter a kernel in vector registers. As long as nothing moves from a vector or mask register to
a general register or to the flags, no branch and no address can depend on them. The exceptions are verdicts (VPTEST):
on tags, and whether a workspace is of the same key as the call before. Gathers, whose addresses are vectors, must not occur at all. In the
message functions gcc keeps lengths in vector registers and moves them back (VMOVQ): there that one
move is allowed, in the page functions nothing is.

    gcm_no_leaks.py OBJECT_OR_ARCHIVE

Exit status: 0 clean, 1 not clean, 77 (skipped, says ctest) without objdump.
"""

import re
import shutil
import subprocess
import sys

SKIPPED = 77
KERNELS = ("gcm_avx512", "gcm_vaes256", "gcm_aesni")
TO_GENERAL_REGISTER = re.compile(
    r"^(v?mov[dq] %xmm\d+,%[re]|v?pextr|v?extractps|v?p?movmsk|v?cvt\w*2si|kmov\w %k\d,%[re])"
)
TO_FLAGS = re.compile(r"^(v?ptest\b|vtestp|v?u?comis|kortest|ktest)")
GATHER = re.compile(r"^v(p?gather|p?scatter)")
MOST_VERDICTS = {"gcm_avx512": 3, "gcm_aesni": 3, "gcm_vaes256": 4}  # pages of 128 and 256-bit keys, messages; the key


def main(path: str) -> int:
    """Disassemble and look at each instruction."""
    objdump = shutil.which("objdump")
    if objdump is None:
        print("skipped: no objdump")
        return SKIPPED
    listing = subprocess.run([objdump, "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    kernel = function = ""
    seen = dict.fromkeys(KERNELS, 0)
    verdicts = dict.fromkeys(KERNELS, 0)
    failed = 0
    for row in listing.stdout.splitlines():
        if "file format" in row:
            kernel = next((name for name in KERNELS if name in row), "")
        if named := re.match(r"[0-9a-f]+ <(\w+)>:", row):
            function = named[1]
        match = re.match(r"\s+[0-9a-f]+:\s+(.*)", row)
        if not kernel or match is None:
            continue
        instruction = re.sub(r"\s+", " ", match[1])
        seen[kernel] += 1
        verdicts[kernel] += bool(TO_FLAGS.match(instruction))
        spill = "message" in function and instruction.startswith("vmovq ")
        if GATHER.match(instruction) or (TO_GENERAL_REGISTER.match(instruction) and not spill):
            print(f"{kernel}: {instruction}")
            failed += 1
    for name in KERNELS:
        if not seen[name] or not 1 <= verdicts[name] <= MOST_VERDICTS[name]:
            print(f"{name}: {seen[name]} instructions, {verdicts[name]} verdicts, expected 1 to {MOST_VERDICTS[name]}")
            failed += 1
    print(f"{sum(seen.values()) - failed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
