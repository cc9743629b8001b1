"""What the service itself leans on: limits, huge pages, file reads, the clock, the endorsement cache."""

from __future__ import annotations

import re
from pathlib import Path

import enclave_bridge as eb
from pagegate.errors import PagegateError
from pagegate.host.model import Check, Context, Outcome, Role, Side, failed, not_applicable, passed, unknown, warned

_MIN_LOCKED = 64 * 1024 * 1024
_MIN_FILES = 4096
_MAX_CLOCK_ERROR = 5.0


def locked_memory(context: Context) -> Outcome:
    soft = _limit(context, "Max locked memory")
    if soft is None:
        return unknown("/proc/self/limits does not tell")
    if soft == "unlimited" or int(soft) >= _MIN_LOCKED:
        return passed(f"memlock {soft}")
    return warned(
        f"memlock {soft} bytes", "LimitMEMLOCK=64M in the unit, or CAP_IPC_LOCK: keys and staging must not reach swap"
    )


def open_files(context: Context) -> Outcome:
    soft = _limit(context, "Max open files")
    if soft is None:
        return unknown("/proc/self/limits does not tell")
    if soft == "unlimited" or int(soft) >= _MIN_FILES:
        return passed(f"nofile {soft}")
    return warned(f"nofile {soft}", "LimitNOFILE=65536 in the unit: each session needs descriptors")


def core_dumps(context: Context) -> Outcome:
    soft = _limit(context, "Max core file size")
    if soft is None:
        return unknown("/proc/self/limits does not tell")
    if soft == "0":
        return passed("core 0")
    return warned(f"core {soft}", "LimitCORE=0 in the unit: a core file holds what the process knew")


def huge_pages(context: Context) -> Outcome:
    machine = context.machine
    reserved = machine.number("/proc/sys/vm/nr_hugepages") or 0
    shared = re.search(r"\[(\w+)]", machine.text("/sys/kernel/mm/transparent_hugepage/shmem_enabled") or "")
    mode = shared.group(1) if shared else "absent"
    found = f"vm.nr_hugepages={reserved}, shmem_enabled={mode}"
    if reserved or mode in ("advise", "always", "within_size", "force"):
        return passed(found)
    return warned(
        found,
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled: memfd regions then need fewer TLB entries",
    )


def file_io(context: Context) -> Outcome:
    if context.machine.root != Path("/"):
        return not_applicable("a captured machine opens no bridge")
    try:
        with eb.Bridge(max_sessions=1, max_handshakes=1) as bridge:
            used = bridge.info.file_io
    except eb.BridgeStatusError as error:
        return failed(f"no bridge opens here: {error}", "see limit.memlock")
    if used == "io_uring":
        return passed("io_uring (the isolated bridge reads by pread, whatever the kernel allows)")
    return warned(used, "see sysctl.io-uring; in a container its seccomp profile must allow io_uring_setup")


def clock(context: Context) -> Outcome:
    state = context.machine.clock()
    found = f"{'synchronised' if state.synchronised else 'not synchronised'}, error at most {state.max_error:.3f} s"
    if state.synchronised and state.max_error <= _MAX_CLOCK_ERROR:
        return passed(found)
    return warned(
        found, "run chrony or systemd-timesyncd: certificates, CRLs and evidence age are checked by this clock"
    )


def endorsement_cache(context: Context) -> Outcome:
    if context.cache is None:
        return not_applicable("no cache was named; --cache DIR looks at one")
    if not context.machine.exists(context.cache):
        return warned(
            f"{context.cache} is not there", "pagegate endorsements fetch fills it; without it each start asks AMD"
        )
    files = context.machine.names(context.cache)
    if not files:
        return warned(f"{context.cache} is empty", "pagegate endorsements fetch")
    return passed(f"{context.cache}: {len(files)} entries")


def firmware_floor(context: Context) -> Outcome:
    if context.verdict is None:
        return not_applicable("no policy was given")
    if context.role is not Role.SNP_GUEST:
        return not_applicable("only an SNP guest can ask for a report")
    try:
        verdict = context.verdict()
    except PagegateError as error:
        return unknown(str(error))
    below = [failure for failure in verdict.failures if "TCB" in failure.code or "FIRMWARE" in failure.code]
    if below:
        found = "; ".join(f"{failure.field} is {failure.found}, must be {failure.expected}" for failure in below)
        return failed(found, "update BIOS and SEV firmware on the host, then pagegate rotate endorsements")
    if verdict.claims is None:
        return unknown(f"the report does not verify: {', '.join(failure.code for failure in verdict.failures)}")
    return passed("at the policy's floor or above")


def _limit(context: Context, name: str) -> str | None:
    """The soft limit: digits or "unlimited"."""
    for line in (context.machine.text("/proc/self/limits") or "").splitlines():
        if line.startswith(name):
            soft = line[len(name) :].split()[:1]
            return soft[0] if soft and re.fullmatch(r"\d{1,20}|unlimited", soft[0]) else None
    return None


CHECKS = (
    Check("limit.memlock", "Locked memory", Side.BOTH, "64 MiB or more", "mlock(2), memfd_secret(2)", locked_memory),
    Check("limit.nofile", "Open files", Side.BOTH, "4096 or more", "getrlimit(2)", open_files),
    Check("limit.core", "Core dumps", Side.BOTH, "0", "core(5)", core_dumps),
    Check(
        "memory.huge-pages",
        "Huge pages for regions",
        Side.BOTH,
        "on",
        "Linux Documentation/admin-guide/mm/transhuge.rst",
        huge_pages,
    ),
    Check(
        "bridge.file-io",
        "How a bridge in process reads files",
        Side.BOTH,
        "io_uring",
        "docs/benchmarks.md, Files",
        file_io,
    ),
    Check("clock.sync", "Clock", Side.BOTH, "synchronised, within 5 s", "adjtimex(2)", clock),
    Check(
        "endorsements.cache",
        "Endorsement cache",
        Side.BOTH,
        "filled",
        "pagegate endorsements --help",
        endorsement_cache,
    ),
    Check(
        "firmware.floor",
        "Firmware against the policy",
        Side.BOTH,
        "at the floor or above",
        "SEV-SNP Firmware ABI (56860), TCB_VERSION",
        firmware_floor,
    ),
)
