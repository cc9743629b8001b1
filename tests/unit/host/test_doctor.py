"""Checks against machines as text, each good one with one thing wrong."""

from __future__ import annotations

import gzip
import os
import stat
import struct
from collections.abc import Callable, Mapping
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pagegate.errors import PlatformError
from pagegate.evidence.model import Claims, EvidenceType, Failure, Verdict
from pagegate.host.checks import ALL
from pagegate.host.doctor import Report, examine
from pagegate.host.machine import CannotSeeError, ClockState, Machine, read_clock
from pagegate.host.model import Finding, Role, Status
from pagegate.host.role import detect_role


def _trees() -> ModuleType:
    spec = util.spec_from_file_location("host_trees", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


trees: Any = _trees()
Build = Callable[..., Machine]


def _of(report: Report, check_id: str) -> Finding:
    (found,) = [finding for finding in report.findings if finding.id == check_id]
    return found


def test_checks_when_listed_then_have_ids_of_their_own_and_a_source() -> None:
    assert len({check.id for check in ALL}) == len(ALL)
    assert all(check.source and check.expected and check.title for check in ALL)


@pytest.mark.parametrize(
    ("tree", "role"),
    [(trees.PLAIN_GUEST, Role.GUEST), (trees.SNP_HOST, Role.HOST), (trees.SNP_GUEST, Role.SNP_GUEST)],
)
def test_role_when_detected_then_is_what_the_machine_is(build: Build, tree: Mapping[str, str], role: Role) -> None:
    assert detect_role(build(tree)) is role


@pytest.mark.parametrize("kept", ["sys/devices/system/cpu/sev/vmpl", "dev/sev-guest", "dev/kmsg"])
def test_role_when_only_one_sign_of_snp_is_left_then_it_is_enough(build: Build, kept: str) -> None:
    signs = {"sys/devices/system/cpu/sev/vmpl", "dev/sev-guest", "dev/kmsg"}
    assert detect_role(build(trees.SNP_GUEST, dict.fromkeys(signs - {kept}))) is Role.SNP_GUEST


def test_role_when_the_register_says_no_snp_then_a_device_node_does_not_count(build: Build) -> None:
    assert detect_role(build(trees.SNP_GUEST, registers={0xC0010131: 0b011})) is Role.GUEST


def test_doctor_when_host_is_ready_then_everything_that_applies_passes(build: Build) -> None:
    report = examine(build(trees.SNP_HOST))
    assert report.worst is Status.PASS, [
        f for f in report.findings if f.status not in (Status.PASS, Status.NOT_APPLICABLE)
    ]
    assert _of(report, "cpu.product").found.startswith("Genoa")
    assert _of(report, "snp.active").status is Status.NOT_APPLICABLE


def test_doctor_when_snp_guest_is_ready_then_everything_that_applies_passes(build: Build) -> None:
    report = examine(build(trees.SNP_GUEST, registers={0xC0010131: 0x807}))
    assert report.worst is Status.PASS, [
        f for f in report.findings if f.status not in (Status.PASS, Status.NOT_APPLICABLE)
    ]
    assert _of(report, "bios.rmp").status is Status.NOT_APPLICABLE


def test_doctor_when_guest_has_no_snp_then_says_so_and_fails(build: Build) -> None:
    report = examine(build(trees.PLAIN_GUEST))
    assert report.worst is Status.FAIL
    found = _of(report, "snp.active")
    assert found.status is Status.FAIL
    assert "without SEV-SNP" in found.found
    assert "allow-simulated" in found.fix


def test_doctor_when_role_is_given_then_it_counts(build: Build) -> None:
    assert _of(examine(build(trees.PLAIN_GUEST), role=Role.HOST), "cpu.snp").status is Status.FAIL


@pytest.mark.parametrize(
    ("check_id", "changes", "status", "words"),
    [
        ("cpu.product", {"proc/cpuinfo": "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t: 1\n"}, "fail", "Intel"),
        ("cpu.product", {"proc/cpuinfo": "vendor_id\t: AuthenticAMD\ncpu family\t: 23\nmodel\t: 49\n"}, "fail", "0x17"),
        ("cpu.product", {"proc/cpuinfo": "Processor\t: AArch64\n"}, "unknown", "no family"),
        ("cpu.snp", {"proc/cpuinfo": "flags\t: sme\n"}, "fail", "sev_snp"),
        ("cpu.sme", {"proc/cpuinfo": "flags\t: sev\n"}, "fail", "sme"),
        ("cpu.crypto", {"proc/cpuinfo": "flags\t: aes\n"}, "fail", "PCLMULQDQ"),
        ("cpu.crypto", {"proc/cpuinfo": "flags\t: aes pclmulqdq\n"}, "warn", "AES-NI only"),
        ("cpu.crypto", {"proc/cpuinfo": "flags\t: aes pclmulqdq avx2 vaes vpclmulqdq\n"}, "pass", "AVX2"),
        (
            "bios.rmp",
            {"dev/kmsg": "3,0,0,-;SEV-SNP: Memory for the RMP table has not been reserved by BIOS\n"},
            "fail",
            "BIOS",
        ),
        ("bios.rmp", {"dev/kmsg": "6,0,0,-;Linux version\n"}, "fail", "no RMP table"),
        ("bios.rmp", {"dev/kmsg": "6,7000,0,-;something late\n"}, "unknown", "gone"),
        ("bios.rmp", {"dev/kmsg": "12,0,0,-;SEV-SNP: RMP table physical range [0x1 - 0x2]\n"}, "unknown", "gone"),
        ("bios.rmp", {"dev/kmsg": None}, "unknown", "no /dev/kmsg"),
        ("bios.snp", {"sys/module/kvm_amd/parameters/sev_snp": "N\n"}, "fail", "sev_snp=N"),
        (
            "bios.snp",
            dict.fromkeys(f"sys/module/kvm_amd/parameters/{n}" for n in ("sev", "sev_es", "sev_snp")),
            "fail",
            "not loaded",
        ),
        ("bios.iommu", {"proc/cmdline": "quiet iommu=pt\n"}, "fail", "iommu=pt"),
        (
            "bios.iommu",
            dict.fromkeys(["sys/class/iommu/ivhd0/name", "sys/class/iommu/ivhd1/name"]),
            "fail",
            "no AMD IOMMU",
        ),
        (
            "bios.iommu",
            {"dev/kmsg": "4,0,0,-;AMD-Vi: SNP: IOMMU is configured in passthrough mode, SNP cannot be supported.\n"},
            "fail",
            "passthrough",
        ),
        ("bios.iommu", {"dev/kmsg": "6,0,0,-;Linux version\n"}, "fail", "none reports"),
        ("bios.iommu", {"dev/kmsg": "6,9,0,-;late\n"}, "unknown", "gone"),
        ("bios.smt", {"sys/devices/system/cpu/smt/active": "1\n"}, "warn", "on"),
        ("bios.smt", {"sys/devices/system/cpu/smt/active": None}, "unknown", "not tell"),
        ("firmware.api", {"dev/kmsg": "6,0,0,-;ccp 0000:02:00.5: SEV-SNP API:1.49 build:3\n"}, "fail", "1.49"),
        ("firmware.api", {"dev/kmsg": "6,0,0,-;ccp 0000:02:00.5: SEV-SNP API:odd\n"}, "unknown", "odd"),
        ("firmware.api", {"dev/kmsg": "6,0,0,-;Linux\n"}, "fail", "no SEV-SNP firmware"),
        ("firmware.api", {"dev/kmsg": "6,9,0,-;Linux\n"}, "unknown", "gone"),
        ("kernel.version", {"proc/sys/kernel/osrelease": "6.8.0-45-generic\n"}, "fail", "6.8"),
        ("kernel.version", {"proc/sys/kernel/osrelease": None}, "unknown", "osrelease"),
        ("kernel.config", {"boot/config-6.12.6-generic": "CONFIG_SECRETMEM=y\n"}, "fail", "CONFIG_KVM_AMD_SEV"),
        (
            "kernel.config",
            {
                "boot/config-6.12.6-generic": "CONFIG_AMD_MEM_ENCRYPT=y\nCONFIG_KVM_AMD_SEV=y\n"
                "CONFIG_CRYPTO_DEV_SP_PSP=y\n"
            },
            "warn",
            "CONFIG_IO_URING",
        ),
        ("kernel.config", {"boot/config-6.12.6-generic": None}, "unknown", "config.gz"),
        ("device.sev", {"dev/sev": None}, "fail", "not there"),
        ("kernel.memfd-secret", {"sys/module/secretmem/parameters/enable": "N\n"}, "warn", "off"),
        ("kernel.memfd-secret", {"sys/module/secretmem/parameters/enable": None}, "warn", "no memfd_secret"),
        ("sysctl.io-uring", {"proc/sys/kernel/io_uring_disabled": "2\n"}, "warn", "nobody"),
        ("sysctl.io-uring", {"proc/sys/kernel/io_uring_disabled": "1\n"}, "warn", "io_uring_group"),
        ("sysctl.io-uring", {"proc/sys/kernel/io_uring_disabled": None}, "warn", "no io_uring"),
        (
            "sysctl.io-uring",
            {"proc/sys/kernel/io_uring_disabled": None, "proc/sys/kernel/osrelease": "6.1.0\n"},
            "pass",
            "cannot be switched off",
        ),
        ("sysctl.dirty", {"proc/sys/vm/dirty_ratio": "40\n"}, "warn", "dirty_ratio=40"),
        ("sysctl.dirty", {"proc/sys/vm/dirty_bytes": "268435456\n"}, "pass", "dirty_bytes"),
        ("sysctl.dirty", {"proc/sys/vm/dirty_ratio": "many\n"}, "unknown", "not there"),
        ("sysctl.perf", {"proc/sys/kernel/perf_event_paranoid": "-1\n"}, "warn", "-1"),
        ("sysctl.perf", {"proc/sys/kernel/perf_event_paranoid": None}, "pass", "no perf"),
        ("sysctl.ptrace", {"proc/sys/kernel/yama/ptrace_scope": "0\n"}, "warn", "0"),
        ("sysctl.ptrace", {"proc/sys/kernel/yama/ptrace_scope": None}, "warn", "Yama"),
        ("limit.memlock", {"proc/self/limits": "Max locked memory         65536  65536  bytes\n"}, "warn", "65536"),
        ("limit.memlock", {"proc/self/limits": "Max locked memory         odd  65536  bytes\n"}, "unknown", "limits"),
        ("limit.nofile", {"proc/self/limits": "Max open files            1024  65536  files\n"}, "warn", "1024"),
        ("limit.nofile", {"proc/self/limits": None}, "unknown", "limits"),
        (
            "limit.core",
            {"proc/self/limits": "Max core file size        unlimited  unlimited  bytes\n"},
            "warn",
            "unlimited",
        ),
        ("limit.core", {"proc/self/limits": None}, "unknown", "limits"),
        (
            "memory.huge-pages",
            {"sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size advise [never] deny force\n"},
            "warn",
            "never",
        ),
        ("memory.huge-pages", {"sys/kernel/mm/transparent_hugepage/shmem_enabled": None}, "warn", "absent"),
    ],
)
def test_doctor_when_one_thing_is_wrong_on_a_host_then_says_which(
    build: Build, check_id: str, changes: dict[str, str | None], status: str, words: str
) -> None:
    finding = _of(examine(build(trees.SNP_HOST, changes), role=Role.HOST), check_id)
    assert (finding.status.value, words in finding.found) == (status, True), finding


@pytest.mark.parametrize(
    ("check_id", "changes", "registers", "status", "words"),
    [
        ("snp.secure-tsc", {}, {0xC0010131: 0x7}, "warn", "without Secure TSC"),
        ("snp.secure-tsc", {}, {}, "unknown", "not readable"),
        (
            "snp.secure-tsc",
            {"sys/devices/system/clocksource/clocksource0/current_clocksource": "kvm-clock\n"},
            {},
            "warn",
            "kvm-clock",
        ),
        ("snp.vmpl", {"sys/devices/system/cpu/sev/vmpl": None}, {}, "unknown", "6.11"),
        ("snp.vmpl", {"sys/devices/system/cpu/sev/vmpl": "2\n"}, {}, "pass", "SVSM"),
        ("device.evidence", {"sys/kernel/config/tsm/report/.keep": None}, {}, "pass", "/dev/sev-guest mode 0640"),
        (
            "device.evidence",
            {"sys/kernel/config/tsm/report/.keep": None, "dev/sev-guest": None},
            {},
            "fail",
            "neither",
        ),
        ("kernel.version", {"proc/sys/kernel/osrelease": "6.1.0\n"}, {}, "warn", "6.1"),
        ("kernel.version", {"proc/sys/kernel/osrelease": "5.15.0\n"}, {}, "fail", "5.15"),
        ("exposure.fw-cfg", {"sys/firmware/qemu_fw_cfg/rev": "1\n"}, {}, "warn", "qemu_fw_cfg"),
        ("exposure.virtio-console", {"sys/bus/virtio/devices/virtio9/device": "0x0003\n"}, {}, "warn", "virtio9"),
    ],
)
def test_doctor_when_one_thing_is_wrong_in_an_snp_guest_then_says_which(
    build: Build, check_id: str, changes: dict[str, str | None], registers: dict[int, int], status: str, words: str
) -> None:
    machine = build(trees.SNP_GUEST, changes, registers=registers)
    finding = _of(examine(machine, role=Role.SNP_GUEST), check_id)
    assert (finding.status.value, words in finding.found) == (status, True), finding


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("kvm-clock", "current is kvm-clock"),
        ("virtio-balloon", "virtio0"),
        ("virtio-vsock", "virtio3"),
        ("serial", "ttyS0"),
        ("io-apic", "2 interrupts"),
    ],
)
def test_doctor_when_guest_has_devices_of_its_host_then_lists_them_with_the_way_out(
    build: Build, device: str, words: str
) -> None:
    finding = _of(examine(build(trees.PLAIN_GUEST)), f"exposure.{device}")
    assert finding.status is Status.WARN
    assert words in finding.found
    assert finding.fix


def test_cpu_snp_when_cpuid_has_what_the_kernel_dropped_then_points_to_the_bios(build: Build) -> None:
    machine = build(
        trees.SNP_HOST, {"proc/cpuinfo": "flags\t: fpu\n"}, cpuid={0x8000001F: struct.pack("<4I", 0x1F, 0, 0, 0)}
    )
    report = examine(machine, role=Role.HOST)
    assert "the CPU has SEV-SNP" in _of(report, "cpu.snp").found
    assert "SYSCFG.MEM_ENCRYPT is off" in _of(report, "cpu.sme").found


@pytest.mark.parametrize(
    ("syscfg", "check_id", "status", "words"),
    [
        (0, "bios.snp", "fail", "SNP_EN is 0"),
        (1 << 24, "bios.snp", "pass", "sev_snp=Y"),
        (1 << 24, "bios.rmp", "pass", "SNP_EN is 1"),
    ],
)
def test_bios_when_the_register_can_be_read_then_it_counts_before_the_log(
    build: Build, syscfg: int, check_id: str, status: str, words: str
) -> None:
    machine = build(trees.SNP_HOST, {"dev/kmsg": "6,9,0,-;late\n"}, registers={0xC0010010: syscfg})
    finding = _of(examine(machine, role=Role.HOST), check_id)
    assert (finding.status.value, words in finding.found) == (status, True), finding


@pytest.mark.parametrize(
    ("clock", "status"),
    [
        (ClockState(synchronised=False, max_error=16.0), Status.WARN),
        (ClockState(synchronised=True, max_error=6.0), Status.WARN),
    ],
)
def test_clock_when_not_kept_then_warns(build: Build, clock: ClockState, status: Status) -> None:
    assert _of(examine(build(trees.SNP_HOST, clock=clock)), "clock.sync").status is status


def test_device_when_anyone_may_use_it_then_warns(build: Build, tmp_path: Path) -> None:
    machine = build(trees.SNP_HOST)
    (tmp_path / "dev/sev").chmod(0o666)
    assert "anyone" in _of(examine(machine), "device.sev").found


@pytest.mark.parametrize(("files", "status"), [(None, "warn"), ([], "warn"), (["a.pem"], "pass")])
def test_cache_when_named_then_its_filling_is_told(
    build: Build, tmp_path: Path, files: list[str] | None, status: str
) -> None:
    machine = build(trees.SNP_HOST)
    if files is not None:
        (tmp_path / "cache").mkdir()
        for name in files:
            (tmp_path / "cache" / name).touch()
    assert _of(examine(machine, cache="/cache"), "endorsements.cache").status.value == status


def _verdict(*failures: Failure, parsed: bool = True) -> Verdict:
    claims = Claims(EvidenceType.SEV_SNP, b"", b"", b"", "", {}) if parsed else None
    return Verdict(accepted=not failures, simulated=False, failures=failures, claims=claims)


_LOW = Failure("SNP_TCB_BELOW_FLOOR", "REPORTED_TCB.SNP", "at least 22", "8", "56860")
_BAD = Failure("SNP_SIGNATURE_INVALID", "SIGNATURE", "valid", "invalid", "56860")


@pytest.mark.parametrize(
    ("verdict", "status", "words"),
    [
        (_verdict(), "pass", "floor"),
        (_verdict(_LOW), "fail", "is 8, must be at least 22"),
        (_verdict(_BAD, parsed=False), "unknown", "SNP_SIGNATURE_INVALID"),
    ],
)
def test_firmware_floor_when_a_policy_is_given_then_the_verdict_decides(
    build: Build, verdict: Verdict, status: str, words: str
) -> None:
    finding = _of(examine(build(trees.SNP_GUEST), verdict=lambda: verdict), "firmware.floor")
    assert (finding.status.value, words in finding.found) == (status, True), finding


def test_firmware_floor_when_no_evidence_can_be_made_then_is_unknown(build: Build) -> None:
    def broken() -> Verdict:
        raise PlatformError("NO_EVIDENCE", "firmware is busy")

    assert _of(examine(build(trees.SNP_GUEST), verdict=broken), "firmware.floor").status is Status.UNKNOWN
    assert (
        _of(examine(build(trees.SNP_HOST), role=Role.HOST, verdict=broken), "firmware.floor").status
        is Status.NOT_APPLICABLE
    )


def test_machine_when_it_may_not_look_then_says_so_instead_of_guessing(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:  # without root, in a tree where nothing may be read
        os._exit(_unprivileged_findings(tmp_path))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _unprivileged_findings(tmp_path: Path) -> int:
    try:
        for name in ("proc/cpuinfo", "sys/class/iommu/x", "dev/kmsg", "dev/cpu/0/msr", "dev/sev"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch(0o600)
        for folder in (tmp_path / "sys/class/iommu", tmp_path / "dev"):
            folder.chmod(0o700)
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
        if os.geteuid() == 0:
            os.setuid(65534)
        else:
            for name in ("sys/class/iommu", "dev", "proc/cpuinfo"):
                (tmp_path / name).chmod(0)
        machine = Machine(tmp_path)
        for look in (
            lambda: machine.text("/proc/cpuinfo"),
            lambda: machine.names("/sys/class/iommu"),
            lambda: machine.exists("/dev/sev"),
            lambda: machine.node("/dev/sev"),
            lambda: machine.msr(0xC0010131),
            machine.kernel_log,
        ):
            try:
                look()
            except CannotSeeError:
                continue
            return 1
        return 0
    except BaseException:
        return 2


def test_kernel_config_when_packed_then_is_read(build: Build, tmp_path: Path) -> None:
    machine = build(trees.SNP_HOST)
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_A=y\n# CONFIG_B is not set\nodd\n"))
    assert machine.config() == {"CONFIG_A": "y"}
    (tmp_path / "proc/config.gz").write_bytes(b"junk")
    assert _of(examine(machine), "kernel.config").status is Status.UNKNOWN


def test_clock_when_read_from_this_kernel_then_has_an_error_bound() -> None:
    state = read_clock()
    assert 0 <= state.max_error < 1e6


def test_report_when_as_json_then_counts_add_up(build: Build) -> None:
    data: dict[str, Any] = examine(build(trees.PLAIN_GUEST)).to_json()
    assert data["role"] == "guest"
    assert data["worst"] == "fail"
    assert sum(data["count"].values()) == len(data["findings"]) == len(ALL)
