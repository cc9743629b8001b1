"""Kernel version, build options, system settings and device nodes."""

from __future__ import annotations

from pagegate.host.machine import CannotSeeError, Node
from pagegate.host.model import (
    Check,
    Context,
    Outcome,
    Role,
    Side,
    failed,
    not_applicable,
    passed,
    unknown,
    warned,
)

_CONFIG_BOTH = ("CONFIG_SECRETMEM", "CONFIG_IO_URING")
_CONFIG_HOST = ("CONFIG_AMD_MEM_ENCRYPT", "CONFIG_KVM_AMD_SEV", "CONFIG_CRYPTO_DEV_SP_PSP")
_CONFIG_GUEST = ("CONFIG_AMD_MEM_ENCRYPT", "CONFIG_SEV_GUEST", "CONFIG_TSM_REPORTS")


def version(context: Context) -> Outcome:
    release = context.machine.release()
    if release is None:
        return unknown("the kernel's version is not in /proc/sys/kernel/osrelease")
    found = f"Linux {release[0]}.{release[1]}"
    if context.role is Role.HOST:
        if release < (6, 11):
            return failed(found, "Linux 6.11 is the first whose KVM starts SNP guests")
    elif release < (5, 19):
        return failed(found, "Linux 5.19 is the first that runs as an SNP guest")
    elif release < (6, 7):
        return warned(found, "Linux 6.7 brings configfs-tsm; before it only /dev/sev-guest gives evidence")
    return passed(found)


def config(context: Context) -> Outcome:
    options = context.machine.config()
    if options is None:
        return unknown("neither /proc/config.gz nor /boot/config-* is there")
    needed = _CONFIG_HOST if context.role is Role.HOST else _CONFIG_GUEST
    missing = [name for name in needed if options.get(name) not in ("y", "m")]
    optional = [name for name in _CONFIG_BOTH if options.get(name) not in ("y", "m")]
    if missing:
        return failed(
            f"not built in: {', '.join(missing + optional)}", "use a distribution kernel with SEV-SNP support"
        )
    if optional:
        return warned(f"not built in: {', '.join(optional)}", "pagegate works without, slower or less tightly")
    return passed(", ".join((*needed, *_CONFIG_BOTH)))


def sev_device(context: Context) -> Outcome:
    node = context.machine.node("/dev/sev")
    if node is None:
        return failed("/dev/sev is not there", "modprobe ccp; see bios.snp")
    return _node("/dev/sev", node)


def evidence_source(context: Context) -> Outcome:
    if context.role is not Role.SNP_GUEST:
        return not_applicable("not an SNP guest")
    try:
        if context.machine.exists("/sys/kernel/config/tsm/report"):
            return passed("configfs-tsm at /sys/kernel/config/tsm/report")
    except CannotSeeError as blocked:
        return unknown(str(blocked))
    node = context.machine.node("/dev/sev-guest")
    if node is None:
        return failed(
            "neither configfs-tsm nor /dev/sev-guest",
            "modprobe sev-guest; mount -t configfs none /sys/kernel/config; give the container the device",
        )
    return _node("/dev/sev-guest", node)


def memfd_secret(context: Context) -> Outcome:
    enabled = context.machine.text("/sys/module/secretmem/parameters/enable")
    if enabled == "Y":
        return passed("memfd_secret is on")
    return warned(
        "memfd_secret is off" if enabled else "the kernel has no memfd_secret",
        "boot with secretmem.enable=1 (on by default from Linux 6.5); until then keys are in mlocked memory",
    )


def io_uring(context: Context) -> Outcome:
    level = context.machine.number("/proc/sys/kernel/io_uring_disabled")
    if level == 0:
        return passed("io_uring is on")
    if level is None:
        release = context.machine.release()
        if release is not None and (5, 10) <= release < (6, 6):
            return passed("io_uring cannot be switched off in this kernel")
        return warned("the kernel has no io_uring", "pagegate reads files by pread instead")
    who = "members of kernel.io_uring_group only" if level == 1 else "nobody"
    return warned(f"kernel.io_uring_disabled={level}: {who}", "sysctl kernel.io_uring_disabled=0, or live with pread")


def dirty_pages(context: Context) -> Outcome:
    machine = context.machine
    hard, soft = machine.number("/proc/sys/vm/dirty_ratio"), machine.number("/proc/sys/vm/dirty_background_ratio")
    hard_bytes = machine.number("/proc/sys/vm/dirty_bytes")
    if hard_bytes:
        return passed(f"vm.dirty_bytes={hard_bytes}")
    if hard is None or soft is None:
        return unknown("vm.dirty_ratio is not there")
    found = f"vm.dirty_ratio={hard} vm.dirty_background_ratio={soft}"
    if hard > 20 or soft > 10:
        return warned(
            found,
            "sysctl vm.dirty_ratio=20 vm.dirty_background_ratio=5: long write-back stalls commits of file regions",
        )
    return passed(found)


def perf_events(context: Context) -> Outcome:
    level = context.machine.number("/proc/sys/kernel/perf_event_paranoid")
    if level is None:
        return passed("no perf events in this kernel")
    found = f"kernel.perf_event_paranoid={level}"
    if level >= 2:
        return passed(found)
    return warned(found, "sysctl kernel.perf_event_paranoid=2: any user can measure other processes' timing")


def ptrace(context: Context) -> Outcome:
    scope = context.machine.number("/proc/sys/kernel/yama/ptrace_scope")
    if scope is None:
        return warned("no Yama: any process of the same user may attach", "build the kernel with CONFIG_SECURITY_YAMA")
    if scope >= 1:
        return passed(f"kernel.yama.ptrace_scope={scope}")
    return warned("kernel.yama.ptrace_scope=0", "sysctl kernel.yama.ptrace_scope=1 (2 is better)")


def _node(path: str, node: Node) -> Outcome:
    found = f"{path} mode {node.mode:04o} owner {node.owner}:{node.group}"
    if node.mode & 0o002:
        return warned(f"{found}: anyone may use it", f"chmod o-rw {path} by a udev rule")
    if not node.usable:
        return warned(f"{found}: not for this user", "add the service's user to its group, or run doctor as that user")
    return passed(found)


_SYSCTL = "Linux Documentation/admin-guide/sysctl"

CHECKS = (
    Check(
        "kernel.version",
        "Kernel version",
        Side.BOTH,
        "host 6.11, guest 5.19, better 6.7",
        "kernel release notes",
        version,
    ),
    Check("kernel.config", "Kernel build options", Side.BOTH, "SEV, TSM, SECRETMEM, IO_URING", "Linux Kconfig", config),
    Check(
        "device.sev", "/dev/sev", Side.HOST, "there, not world-writable", "Linux Documentation/virt/coco", sev_device
    ),
    Check(
        "device.evidence",
        "A way to get evidence",
        Side.GUEST,
        "configfs-tsm or /dev/sev-guest",
        "Linux Documentation/virt/coco/sev-guest.rst, ABI/testing/configfs-tsm-report",
        evidence_source,
    ),
    Check("kernel.memfd-secret", "Secret memory", Side.BOTH, "on", "memfd_secret(2)", memfd_secret),
    Check("sysctl.io-uring", "io_uring", Side.BOTH, "0", f"{_SYSCTL}/kernel.rst", io_uring),
    Check(
        "sysctl.dirty",
        "Write-back limits",
        Side.BOTH,
        "dirty_ratio up to 20, background up to 10",
        f"{_SYSCTL}/vm.rst",
        dirty_pages,
    ),
    Check("sysctl.perf", "perf_event_paranoid", Side.BOTH, "2 or more", f"{_SYSCTL}/kernel.rst", perf_events),
    Check(
        "sysctl.ptrace", "ptrace_scope", Side.BOTH, "1 or more", "Linux Documentation/admin-guide/LSM/Yama.rst", ptrace
    ),
)
