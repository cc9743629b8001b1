"""CPU, BIOS and firmware: what the machine can do and what its BIOS turned on."""

from __future__ import annotations

import re

from pagegate.host.machine import CannotSeeError
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
from pagegate.host.role import SECURE_TSC, sev_status, snp_sign

_SEV_LEAF = 0x8000_001F
_SME_BIT, _SEV_BIT, _SNP_BIT = 1 << 0, 1 << 1, 1 << 4
_SYSCFG = 0xC001_0010
_SYSCFG_SNP_ENABLE = 1 << 24
_MIN_SNP_API = (1, 51)

_BIOS_SNP = (
    "In the BIOS (AMD CBS > CPU Common Options): SMEE enabled, SEV-ES ASID Space Limit above 1, "
    "SNP Memory (RMP Table) Coverage enabled; (AMD CBS > NBIO) IOMMU and SEV-SNP Support enabled"
)
_MODELS = (
    # family, first and last model, product (AMD 57230: VCEK product names; kernel arch/x86/kernel/cpu/amd.c)
    (0x19, 0x00, 0x0F, "Milan"),
    (0x19, 0x10, 0x1F, "Genoa"),
    (0x19, 0xA0, 0xAF, "Genoa (Bergamo or Siena)"),
    (0x1A, 0x00, 0x11, "Turin"),
)


def cpu_product(context: Context) -> Outcome:
    info = context.machine.cpuinfo()
    vendor = info.get("vendor_id", "an unknown vendor")
    try:
        family, model = int(info.get("cpu family", "")), int(info.get("model", ""))
    except ValueError:
        return unknown("/proc/cpuinfo names no family and model", "run on x86-64 Linux")
    found = f"{vendor} family {family:#x} model {model:#x} ({info.get('model name', 'no name')})"
    if vendor == "AuthenticAMD":
        for its_family, first, last, product in _MODELS:
            if family == its_family and first <= model <= last:
                return passed(f"{product}: {found}")
    return failed(found, "run on AMD EPYC 7003 (Milan), 9004 (Genoa), 9005 (Turin) or later; no other CPU has SEV-SNP")


def cpu_snp(context: Context) -> Outcome:
    flags = context.machine.cpu_flags()
    if "sev_snp" in flags:
        return passed("flag sev_snp in /proc/cpuinfo")
    leaf = context.machine.cpuid(_SEV_LEAF)
    if leaf is not None and leaf[0] & _SNP_BIT:
        return failed(
            "the CPU has SEV-SNP (CPUID 8000001F EAX bit 4), the kernel dropped it",
            f"{_BIOS_SNP}; and build the kernel with CONFIG_AMD_MEM_ENCRYPT",
        )
    return failed("no flag sev_snp in /proc/cpuinfo", _BIOS_SNP)


def cpu_sme(context: Context) -> Outcome:
    flags = context.machine.cpu_flags()
    if "sme" in flags:
        return passed("flag sme in /proc/cpuinfo")
    leaf = context.machine.cpuid(_SEV_LEAF)
    if leaf is not None and leaf[0] & (_SME_BIT | _SEV_BIT):
        return failed("the CPU has SME, SYSCFG.MEM_ENCRYPT is off", "enable SMEE in the BIOS; SNP depends on it")
    return failed("no flag sme in /proc/cpuinfo", "enable SMEE in the BIOS; SNP depends on it")


def cpu_crypto(context: Context) -> Outcome:
    flags = context.machine.cpu_flags()
    if not {"aes", "pclmulqdq"} <= flags:
        return failed(
            "no AES-NI or PCLMULQDQ",
            "expose them to the guest (-cpu host): AES in software is slow and leaks by timing",
        )
    wide = {"vaes", "vpclmulqdq"} <= flags
    if wide and "avx512f" in flags:
        return passed("VAES and VPCLMULQDQ with AVX-512")
    if wide and "avx2" in flags:
        return passed("VAES and VPCLMULQDQ with AVX2")
    return warned("AES-NI only", "expose VAES and VPCLMULQDQ to the guest (-cpu host) for full speed")


def snp_active(context: Context) -> Outcome:
    sign = snp_sign(context.machine)
    if sign is not None:
        return passed(f"SEV-SNP is active: {sign}")
    return failed(
        "a virtual machine without SEV-SNP: its host can read and change its memory",
        "start the guest with SEV-SNP (QEMU: -object sev-snp-guest and confidential-guest-support; "
        "cloud: a confidential VM type with AMD SEV-SNP). Until then use --allow-simulated, for trials only",
    )


def secure_tsc(context: Context) -> Outcome:
    if context.role is not Role.SNP_GUEST:
        return not_applicable("not an SNP guest")
    source = context.machine.text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    status = sev_status(context.machine)
    if status is not None and status & SECURE_TSC:
        return passed(f"Secure TSC, clock source {source}")
    fix = "start the guest with Secure TSC (QEMU: -object sev-snp-guest,secure-tsc=on, Genoa or later)"
    if source == "kvm-clock":
        return warned("clock source kvm-clock: the host sets this guest's time", f"boot with clocksource=tsc; {fix}")
    if status is None:
        return unknown(f"clock source {source}; SEV_STATUS not readable", "modprobe msr and run as root to see it")
    return warned(f"clock source {source} without Secure TSC: the host can scale it", fix)


def vmpl(context: Context) -> Outcome:
    if context.role is not Role.SNP_GUEST:
        return not_applicable("not an SNP guest")
    level = context.machine.number("/sys/devices/system/cpu/sev/vmpl")
    if level is None:
        return unknown("the kernel does not tell (before 6.11)", "read it from the report: pagegate show")
    return passed(f"VMPL {level}" + (" (an SVSM runs below this kernel)" if level else ""))


def rmp_table(context: Context) -> Outcome:
    syscfg = _syscfg(context)
    if syscfg is not None and syscfg & _SYSCFG_SNP_ENABLE:
        return passed("SYSCFG.SNP_EN is 1, which the kernel sets only over a table that covers all memory")
    log = context.machine.kernel_log()
    for complaint in ("has not been reserved by BIOS", "RMP configuration not valid", "does not cover full system RAM"):
        line = log.find("SEV-SNP:", complaint)
        if line is not None:
            return failed(line, "enable SNP Memory (RMP Table) Coverage in the BIOS, for all memory")
    line = log.find("SEV-SNP:", "RMP table physical range")
    if line is not None:
        return passed(line)
    if log.complete:
        return failed("the kernel log has no RMP table", _BIOS_SNP)
    return unknown("the start of the kernel log is gone", "journalctl -k -b | grep SEV-SNP")


def snp_enabled(context: Context) -> Outcome:
    machine = context.machine
    syscfg = _syscfg(context)
    if syscfg is not None and not syscfg & _SYSCFG_SNP_ENABLE:
        return failed(
            "SYSCFG.SNP_EN is 0", "see the kernel log for the reason: journalctl -k -b | grep -E 'SEV-SNP|AMD-Vi'"
        )
    parameters = {name: machine.text(f"/sys/module/kvm_amd/parameters/{name}") for name in ("sev", "sev_es", "sev_snp")}
    if not machine.exists("/sys/module/kvm_amd"):
        return failed("module kvm_amd is not loaded", "modprobe kvm_amd sev=1 sev_es=1 sev_snp=1")
    found = "kvm_amd " + " ".join(f"{name}={value}" for name, value in parameters.items())
    if all(value in ("Y", "1") for value in parameters.values()):
        return passed(found)
    return failed(
        found,
        "options kvm_amd sev=1 sev_es=1 sev_snp=1 in /etc/modprobe.d; if it stays N, the BIOS or the firmware refuses",
    )


def iommu(context: Context) -> Outcome:
    machine = context.machine
    options = set(machine.command_line()) & {"iommu=pt", "iommu.passthrough=1", "amd_iommu=off", "iommu=off"}
    if options:
        return failed(f"booted with {' '.join(sorted(options))}", "remove it: SNP needs the IOMMU in translating mode")
    units = [name for name in machine.names("/sys/class/iommu") if name.startswith("ivhd")]
    if not units:
        return failed("no AMD IOMMU", "enable IOMMU in the BIOS (AMD CBS > NBIO)")
    log = machine.kernel_log()
    line = log.find("AMD-Vi", "SNP cannot be supported") or log.find("SNP:", "SNP cannot be supported")
    if line is not None:
        return failed(line, "do what the message says, then reboot")
    line = log.find("IOMMU SNP support enabled")
    if line is not None:
        return passed(f"{len(units)} units, {line}")
    if log.complete:
        return failed(
            f"{len(units)} units, none reports SNP support", "enable SEV-SNP Support in the BIOS (AMD CBS > NBIO)"
        )
    return unknown(f"{len(units)} units; the start of the kernel log is gone", "journalctl -k -b | grep AMD-Vi")


def smt(context: Context) -> Outcome:
    active = context.machine.number("/sys/devices/system/cpu/smt/active")
    if active is None:
        return unknown("the kernel does not tell")
    if active == 0:
        return passed("off")
    return warned(
        "on: guests that forbid SMT in their policy do not start, and verifiers may refuse PLATFORM_INFO.SMT_EN",
        "turn it off in the BIOS if your policy asks for it (nosmt on the command line does not change the report)",
    )


def firmware_api(context: Context) -> Outcome:
    log = context.machine.kernel_log()
    line = log.find("ccp", "SEV-SNP API:")
    if line is None:
        if log.complete:
            return failed("the kernel log has no SEV-SNP firmware", "load module ccp; update the SEV firmware")
        return unknown("the start of the kernel log is gone", "journalctl -k -b | grep 'SEV-SNP API'")
    match = re.search(r"SEV-SNP API:(\d{1,5})\.(\d{1,5}) build:(\d{1,5})", line)
    if match is None:
        return unknown(line)
    major, minor, build = map(int, match.groups())
    found = f"firmware {major}.{minor} build {build}"
    if (major, minor) < _MIN_SNP_API:
        return failed(found, "update the BIOS, or put AMD's SEV firmware in /lib/firmware/amd and reload ccp")
    return passed(found)


def _syscfg(context: Context) -> int | None:
    """The SYSCFG register, None when it is not there or not for us."""
    try:
        return context.machine.msr(_SYSCFG)
    except CannotSeeError:
        return None


_APM = "AMD64 Architecture Programmer's Manual volume 2 (24593)"
_ABI = "SEV-SNP Firmware ABI (56860)"

CHECKS = (
    Check("cpu.product", "CPU has SEV-SNP by its model", Side.BOTH, "AMD EPYC Milan, Genoa, Turin", _ABI, cpu_product),
    Check("cpu.snp", "SEV-SNP seen by the kernel", Side.HOST, "flag sev_snp", f"{_APM}, 15.36", cpu_snp),
    Check("cpu.sme", "Memory encryption on", Side.HOST, "flag sme", f"{_APM}, 7.10", cpu_sme),
    Check("cpu.crypto", "AES in hardware", Side.BOTH, "AES-NI, better VAES", "docs/host-setup.md", cpu_crypto),
    Check("snp.active", "This guest is protected by SEV-SNP", Side.GUEST, "active", f"{_APM}, 15.34.10", snp_active),
    Check("snp.secure-tsc", "Time is not the host's", Side.GUEST, "Secure TSC", f"{_APM}, 15.36.18", secure_tsc),
    Check("snp.vmpl", "Privilege level", Side.GUEST, "known", f"{_ABI}, ATTESTATION_REPORT.VMPL", vmpl),
    Check("bios.rmp", "Memory reserved for the RMP table", Side.HOST, "reserved", f"{_APM}, 15.36.4", rmp_table),
    Check(
        "bios.snp",
        "SEV-SNP enabled in CPU and KVM",
        Side.HOST,
        "kvm_amd sev_snp=Y",
        "Linux arch/x86/kvm/svm/sev.c",
        snp_enabled,
    ),
    Check(
        "bios.iommu", "IOMMU supports SNP", Side.HOST, "translating, SNP on", "Linux drivers/iommu/amd/init.c", iommu
    ),
    Check("bios.smt", "SMT", Side.HOST, "off, if the policy asks", f"{_ABI}, PLATFORM_INFO", smt),
    Check(
        "firmware.api",
        "SNP firmware version",
        Side.HOST,
        "1.51 or later",
        "Linux drivers/crypto/ccp/sev-dev.c",
        firmware_api,
    ),
)
