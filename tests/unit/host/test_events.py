"""Recorded lines, made by the kernel's own format strings, become typed events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagegate.host.events import EventKind, Severity, events, lost_log_line, parse_line

# (source file in Linux, line, kind, severity, fields)
_RECORDED = [
    (
        "arch/x86/virt/svm/sev.c",
        "[  812.345678] SEV-SNP: RMPUPDATE failed for PFN 12ab00, pg_level: 2, ret: 3",
        EventKind.RMP_UPDATE_FAILED,
        Severity.CRITICAL,
        {"pfn": 0x12AB00, "level": 2, "ret": 3},
    ),
    (
        "arch/x86/virt/svm/sev.c",
        "6,2001,812345699,-;SEV-SNP: PFN 0x12ab00, RMP entry: [0x1000000000000003 - 0x0000000000000000]",
        EventKind.RMP_DUMP,
        Severity.INFO,
        {"pfn": 0x12AB00, "low": 0x1000000000000003, "high": 0},
    ),
    (
        "arch/x86/virt/svm/sev.c",
        "[  812.3] SEV-SNP: PFN 0x12ab01 unassigned, dumping non-zero entries in 2M PFN region: [0x12aa00 - 0x12ac00]",
        EventKind.RMP_DUMP,
        Severity.INFO,
        {"pfn": 0x12AB01},
    ),
    (
        "arch/x86/virt/svm/sev.c",
        "[  812.3] SEV-SNP: PFN: 0x12ab02, [0x0000000000000001 - 0x0000000000000002]",
        EventKind.RMP_DUMP,
        Severity.INFO,
        {"pfn": 0x12AB02, "low": 1, "high": 2},
    ),
    (
        "arch/x86/virt/svm/sev.c",
        "[  812.3] SEV-SNP: Failed to read RMP entry for PFN 0x12ab02, error -19",
        EventKind.RMP_DUMP,
        Severity.WARNING,
        {"pfn": 0x12AB02},
    ),
    (
        "arch/x86/virt/svm/sev.c",
        "[  900.000001] SEV-SNP: Leaking PFN range 0x500-0x501",
        EventKind.PAGES_LEAKED,
        Severity.WARNING,
        {"first": 0x500, "end": 0x501},
    ),
    (
        "arch/x86/virt/svm/sev.c",
        "Feb 27 19:32:31 node7 kernel: SEV-SNP: Memory for the RMP table has not been reserved by BIOS",
        EventKind.SNP_DISABLED,
        Severity.CRITICAL,
        {},
    ),
    (
        "arch/x86/virt/svm/sev.c",
        "Feb 27 19:32:31 node7 kernel: SEV-SNP: RMP table physical range [0x0000000035500000 - 0x0000000075afffff]",
        EventKind.SNP_ENABLED,
        Severity.INFO,
        {"base": 0x35500000, "end": 0x75AFFFFF},
    ),
    (
        "drivers/iommu/amd/init.c",
        "[    1.2] AMD-Vi: SNP: IOMMU is configured in passthrough mode, SNP cannot be supported.",
        EventKind.SNP_DISABLED,
        Severity.CRITICAL,
        {},
    ),
    (
        "drivers/iommu/amd/iommu.c",
        "[  77.7] nvme 0000:41:00.0: AMD-Vi: Event logged [RMP_HW_ERROR vmg_tag=0x0001, spa=0x8000, flags=0x0010]",
        EventKind.IOMMU_RMP_FAULT,
        Severity.CRITICAL,
        {"vmg_tag": 1, "spa": 0x8000},
    ),
    (
        "drivers/iommu/amd/iommu.c",
        "[  77.7] AMD-Vi: Event logged [RMP_PAGE_FAULT device=41:00.0, vmg_tag=0x0002, gpa=0x9000,"
        " flags_rmp=0x0001, flags=0x0010]",
        EventKind.IOMMU_RMP_FAULT,
        Severity.CRITICAL,
        {"vmg_tag": 2, "gpa": 0x9000},
    ),
    (
        "arch/x86/kvm/svm/sev.c",
        "[ 1000.5] kvm_amd: SEV: Unexpected RMP fault, no backing page for private GPA 0x7f000",
        EventKind.RMP_FAULT_UNEXPECTED,
        Severity.WARNING,
        {"gpa": 0x7F000},
    ),
    (
        "arch/x86/kvm/svm/sev.c",
        "[ 1000.5] kvm_amd: SEV: Unable to split RMP entry for GPA 0x7f000 PFN 0x12ab00 ret 2",
        EventKind.RMP_SPLIT_FAILED,
        Severity.WARNING,
        {"gpa": 0x7F000, "pfn": 0x12AB00, "ret": 2},
    ),
    (
        "arch/x86/kvm/svm/sev.c",
        "[ 1000.5] kvm_amd: SEV-ES guest requested termination: 0x1:0x2",
        EventKind.GUEST_TERMINATED,
        Severity.WARNING,
        {"reason_set": 1, "reason": 2},
    ),
    (
        "arch/x86/kvm/svm/sev.c",
        "[    9.5][    T1] kvm_amd: SEV-SNP enabled (ASIDs 1 - 509)",
        EventKind.SNP_ENABLED,
        Severity.INFO,
        {"first_asid": 1, "last_asid": 509},
    ),
    (
        "arch/x86/mm/fault.c",
        "1,3000,2000000000,-;#PF: error_code(0x80000003) - RMP violation",
        EventKind.RMP_VIOLATION,
        Severity.CRITICAL,
        {"error_code": 0x80000003},
    ),
    (
        "drivers/virt/coco/sev-guest/sev-guest.c",
        "[  60.1] sev-guest sev-guest: Disabling vmpck_id 0 to prevent IV reuse.",
        EventKind.EVIDENCE_KEY_LOST,
        Severity.CRITICAL,
        {"vmpck": 0},
    ),
    (
        "arch/x86/coco/sev/core.c",
        "[  60.1] SEV: Disabling VMPCK0 communication key to prevent IV reuse.",
        EventKind.EVIDENCE_KEY_LOST,
        Severity.CRITICAL,
        {"vmpck": 0},
    ),
    (
        "drivers/virt/coco/sev-guest/sev-guest.c",
        "[  60.0] sev-guest sev-guest: Detected error from ASP request. rc: -5, exitinfo2: 0x20000000a",
        EventKind.FIRMWARE_ERROR,
        Severity.WARNING,
        {"ret": -5, "exitinfo2": 0x20000000A},
    ),
    (
        "drivers/crypto/ccp/sev-dev.c",
        "[   9.0] ccp 0000:02:00.5: SEV-SNP: failed to INIT rc -5, error 0x13",
        EventKind.SNP_DISABLED,
        Severity.CRITICAL,
        {"ret": -5, "error": 0x13},
    ),
    (
        "lib/ratelimit.c",
        "[ 1001.5] sev_handle_rmp_fault: 42 callbacks suppressed",
        EventKind.EVENTS_SUPPRESSED,
        Severity.WARNING,
        {"function": "sev_handle_rmp_fault", "count": 42},
    ),
    (
        "arch/x86/kvm/trace.h",
        "       CPU 0/KVM-21331   [017] d..2.  5123.456789: kvm_rmp_fault: vcpu 0 gpa 000000007f000000 pfn 0x12ab00"
        " error_code 0x480000006 rmp_level 2 psmash_ret 0",
        EventKind.RMP_FAULT,
        Severity.INFO,
        {"vcpu": 0, "gpa": 0x7F000000, "pfn": 0x12AB00, "error_code": 0x480000006, "rmp_level": 2, "psmash_ret": 0},
    ),
    (
        "arch/x86/kvm/trace.h",
        "  qemu-system-x86-21331 (21331) [001] .....    10.000001: kvm_rmp_fault: vcpu 1 gpa 0000000000001000 pfn 0x1"
        " error_code 0x80000004 rmp_level 1 psmash_ret 3",
        EventKind.RMP_FAULT,
        Severity.WARNING,
        {"vcpu": 1, "gpa": 0x1000, "pfn": 1, "error_code": 0x80000004, "rmp_level": 1, "psmash_ret": 3},
    ),
    (
        "arch/x86/include/asm/trace/exceptions.h",
        "           <...>-4242    [003] d..1.  6000.123456: page_fault_user: address=0x7f1200000000"
        " ip=0x401136 error_code=0x80000007",
        EventKind.RMP_VIOLATION,
        Severity.CRITICAL,
        {"mode": "user", "address": 0x7F1200000000, "ip": 0x401136, "error_code": 0x80000007},
    ),
    (
        "kernel/trace/trace.c",
        "CPU:3 [LOST 17 EVENTS]",
        EventKind.EVENTS_SUPPRESSED,
        Severity.WARNING,
        {"count": 17},
    ),
]


@pytest.mark.parametrize(
    ("source", "line", "kind", "severity", "fields"),
    _RECORDED,
    ids=[f"{r[2].value}-{i}" for i, r in enumerate(_RECORDED)],
)
def test_event_when_the_kernel_prints_it_then_is_typed(
    source: str, line: str, kind: EventKind, severity: Severity, fields: dict[str, object]
) -> None:
    event = parse_line(line + "\n")
    assert event is not None, source
    assert (event.kind, event.severity, dict(event.fields)) == (kind, severity, fields)
    assert event.to_json()["kind"] == kind.value


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[    0.424980] Key type encrypted registered",
        "6,10,0,-;ccp 0000:02:00.5: sev enabled",
        # user space wrote this one: its facility is not 0
        "12,10,0,-;SEV-SNP: RMPUPDATE failed for PFN 12ab00, pg_level: 2, ret: 3",
        # an ordinary page fault: bit 31 is not set
        "           <...>-4242    [003] d..1.  6000.123456: page_fault_user: address=0x7f12 ip=0x401136 error_code=0x7",
        "  CPU 0/KVM-21331   [017] d..2.  5123.456789: kvm_page_fault: vcpu 0 rip 0x1 address 0x2 error_code 0x6",
        # a traced process cannot put words into the kernel's mouth
        "  SEV-SNP-1  [003] d..1.  6000.123456: sched_switch: SEV-SNP: RMPUPDATE failed for PFN 1, pg_level: 1, ret: 1",
        "x" * 100_000,
    ],
)
def test_event_when_line_is_about_something_else_then_there_is_none(line: str) -> None:
    assert parse_line(line) is None


def test_events_when_log_was_overwritten_then_say_so() -> None:
    (event,) = events(["nothing\n", lost_log_line()])
    assert event.kind is EventKind.EVENTS_SUPPRESSED


def test_event_when_page_fault_of_a_guest_fails_its_rmp_check_then_is_told() -> None:
    line = (
        "  CPU 0/KVM-21331   [017] d..2.  5123.456789: kvm_page_fault: vcpu 0 rip 0x1 address 0x2 error_code 0x80000006"
    )
    event = parse_line(line)
    assert event is not None
    assert (event.kind, event.uptime) == (EventKind.RMP_FAULT, 5123.456789)


@given(
    st.text(max_size=300)
    | st.sampled_from([r[1] for r in _RECORDED]).flatmap(
        lambda line: st.integers(0, len(line)).map(lambda n: line[:n] + "\x00" + line[n:])
    )
)
def test_parse_line_when_text_is_anything_then_never_raises(line: str) -> None:
    parse_line(line)
