"""Machines as folders of the text that real ones show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pagegate.host.machine import ClockState, Machine

GOOD_CLOCK = ClockState(synchronised=True, max_error=0.02)

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max core file size        0                    unlimited            bytes
Max open files            65536                65536                files
Max locked memory         unlimited            unlimited            bytes
"""

COMMON: Mapping[str, str] = {
    "proc/cmdline": "root=/dev/vda quiet\n",
    "proc/self/limits": LIMITS,
    "proc/sys/kernel/osrelease": "6.12.6-generic\n",
    "proc/sys/kernel/io_uring_disabled": "0\n",
    "proc/sys/kernel/perf_event_paranoid": "2\n",
    "proc/sys/kernel/yama/ptrace_scope": "1\n",
    "proc/sys/vm/dirty_ratio": "20\n",
    "proc/sys/vm/dirty_background_ratio": "10\n",
    "proc/sys/vm/dirty_bytes": "0\n",
    "proc/sys/vm/nr_hugepages": "0\n",
    "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size [advise] never deny force\n",
    "sys/module/secretmem/parameters/enable": "Y\n",
}

# From the Firecracker guest that this project is built on: Intel, KVM, no SEV-SNP.
PLAIN_GUEST: Mapping[str, str] = {
    **COMMON,
    "proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 167\n"
    "model name\t: Intel(R) Xeon(R) Processor\nflags\t\t: fpu aes pclmulqdq avx2 hypervisor vaes vpclmulqdq avx512f\n\n"
    "processor\t: 1\n",
    "proc/consoles": "ttyS0                -W- (EC  p a)    4:64\n",
    "proc/interrupts": "           CPU0       CPU1\n 24:          1          0  IO-APIC   5-edge      ACPI:Ged\n"
    " 26:          0         15  IO-APIC   4-edge      ttyS0\n 31:  0   1206 PCI-MSIX-0000:00:01.0   3-edge virtio0\n",
    "dev/kmsg": "5,0,0,-;Linux version 6.18.44\n6,90,424980,-;Key type encrypted registered\n",
    "boot/config-6.12.6-generic": "CONFIG_SECRETMEM=y\nCONFIG_IO_URING=y\n# CONFIG_AMD_MEM_ENCRYPT is not set\n",
    "sys/bus/virtio/devices/virtio0/device": "0x0005\n",
    "sys/bus/virtio/devices/virtio1/device": "0x0002\n",
    "sys/bus/virtio/devices/virtio3/device": "0x0013\n",
    "sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc kvm-clock\n",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "kvm-clock\n",
}

# An EPYC 9004 host; log lines by the format strings of arch/x86/virt/svm/sev.c, arch/x86/kvm/svm/sev.c,
# drivers/iommu/amd/init.c and drivers/crypto/ccp/sev-dev.c.
HOST_LOG = """\
5,0,0,-;Linux version 6.12.6-generic
6,10,0,-;SEV-SNP: RMP table physical range [0x000000bf7e800000 - 0x000000c03f0fffff]
6,500,1000000,-;AMD-Vi: IOMMU SNP support enabled.
6,900,9000000,-;ccp 0000:02:00.5: SEV-SNP API:1.55 build:24
6,950,9500000,-;kvm_amd: SEV-SNP enabled (ASIDs 1 - 509)
"""
SNP_HOST: Mapping[str, str] = {
    **COMMON,
    "proc/cpuinfo": "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n"
    "model name\t: AMD EPYC 9354 32-Core Processor\nflags\t\t: fpu aes pclmulqdq avx2 svm sme sev sev_es sev_snp vaes"
    " vpclmulqdq avx512f\n",
    "dev/kmsg": HOST_LOG,
    "dev/sev": "",
    "boot/config-6.12.6-generic": "CONFIG_SECRETMEM=y\nCONFIG_IO_URING=y\nCONFIG_AMD_MEM_ENCRYPT=y\n"
    "CONFIG_KVM_AMD_SEV=y\nCONFIG_CRYPTO_DEV_SP_PSP=y\n",
    "sys/class/iommu/ivhd0/name": "",
    "sys/class/iommu/ivhd1/name": "",
    "sys/devices/system/cpu/smt/active": "0\n",
    "sys/module/kvm_amd/parameters/sev": "Y\n",
    "sys/module/kvm_amd/parameters/sev_es": "Y\n",
    "sys/module/kvm_amd/parameters/sev_snp": "Y\n",
}

SNP_GUEST: Mapping[str, str] = {
    **COMMON,
    "proc/cpuinfo": "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\n"
    "model name\t: AMD EPYC 7763 64-Core Processor\nflags\t\t: fpu aes pclmulqdq avx2 hypervisor vaes vpclmulqdq\n",
    "dev/kmsg": "5,0,0,-;Linux version 6.12.6-generic\n"
    "6,9,0,-;Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP\n6,10,0,-;SEV: SNP running at VMPL0.\n",
    "dev/sev-guest": "",
    "boot/config-6.12.6-generic": "CONFIG_SECRETMEM=y\nCONFIG_IO_URING=y\nCONFIG_AMD_MEM_ENCRYPT=y\n"
    "CONFIG_SEV_GUEST=m\nCONFIG_TSM_REPORTS=m\n",
    "sys/devices/system/cpu/sev/vmpl": "0\n",
    "sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc\n",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
    "sys/kernel/config/tsm/report/.keep": "",
}

Build = Callable[..., Machine]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """`build(SNP_HOST, {"path": "text" | None})`: a machine, with some files changed or taken away."""

    def make(
        tree: Mapping[str, str],
        changes: Mapping[str, str | None] | None = None,
        *,
        registers: Mapping[int, int] | None = None,
        cpuid: Mapping[int, bytes] | None = None,
        clock: ClockState = GOOD_CLOCK,
    ) -> Machine:
        for name, text in {**tree, **(changes or {})}.items():
            if text is not None:
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                path.chmod(0o640)
        for name, values in (
            ("msr", {number: value.to_bytes(8, "little") for number, value in (registers or {}).items()}),
            ("cpuid", cpuid or {}),
        ):
            if values:
                path = tmp_path / "dev/cpu/0" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:  # sparse, as large as the highest register's number
                    for offset, data in values.items():
                        file.seek(offset)
                        file.write(data)
        return Machine(tmp_path, clock=lambda: clock)

    return make
