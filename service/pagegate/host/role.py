"""Is this a host, an SNP guest, or a guest that its host can read?"""

from __future__ import annotations

from pagegate.host.machine import CannotSeeError, Machine
from pagegate.host.model import Role

SEV_STATUS = 0xC001_0131
"""MSR in a guest (AMD APM volume 2, 15.34.10): SEV 0, SEV-ES 1, SNP 2, Secure TSC 11."""
SNP_ACTIVE = 1 << 2
SECURE_TSC = 1 << 11


def detect_role(machine: Machine) -> Role:
    """Takes the strongest sign there is; a sign that cannot be seen counts as none."""
    if "hypervisor" not in machine.cpu_flags():
        return Role.HOST
    return Role.SNP_GUEST if snp_sign(machine) else Role.GUEST


def snp_sign(machine: Machine) -> str | None:
    """What shows that SEV-SNP protects this guest, None when nothing does."""
    status = sev_status(machine)
    if status is not None:
        return f"SEV_STATUS MSR {status:#x}" if status & SNP_ACTIVE else None
    for path in ("/sys/devices/system/cpu/sev/vmpl", "/dev/sev-guest"):
        if _seen(machine, path):
            return path
    try:
        return machine.kernel_log().find("Memory Encryption Features active:", "SEV-SNP")
    except CannotSeeError:
        return None


def sev_status(machine: Machine) -> int | None:
    """The SEV_STATUS register, None when it is not there or not for us."""
    try:
        return machine.msr(SEV_STATUS)
    except CannotSeeError:
        return None


def _seen(machine: Machine, path: str) -> bool:
    try:
        return machine.exists(path)
    except CannotSeeError:
        return False
