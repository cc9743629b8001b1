"""Lines of the kernel log and of tracefs that tell of SEV-SNP, as typed events.

Every pattern is one of the kernel's own format strings; its source file is beside it. Text from
user space cannot pass for the kernel's: /dev/kmsg marks it with another facility.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

_MAX_LINE = 8192
_RMP_ERROR_BIT = 1 << 31
"""X86_PF_RMP and PFERR_GUEST_RMP_MASK: the fault was an RMP check (AMD APM volume 2, 15.36.10)."""


class Severity(StrEnum):
    """How much an operator should care."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class EventKind(StrEnum):
    """What happened. Values are stable: they name metrics and alerts."""

    RMP_FAULT = "rmp-fault"
    """KVM handled a nested page fault that failed its RMP check; some are normal."""
    RMP_FAULT_UNEXPECTED = "rmp-fault-unexpected"
    RMP_VIOLATION = "rmp-violation"
    """Host code touched a page that belongs to a guest."""
    RMP_UPDATE_FAILED = "rmp-update-failed"
    RMP_SPLIT_FAILED = "rmp-split-failed"
    RMP_DUMP = "rmp-dump"
    """Contents of RMP entries that the kernel prints after another event."""
    IOMMU_RMP_FAULT = "iommu-rmp-fault"
    PAGES_LEAKED = "pages-leaked"
    GUEST_TERMINATED = "guest-terminated"
    EVIDENCE_KEY_LOST = "evidence-key-lost"
    """The guest's message key was dropped: no more reports until the guest restarts."""
    FIRMWARE_ERROR = "firmware-error"
    SNP_ENABLED = "snp-enabled"
    SNP_DISABLED = "snp-disabled"
    EVENTS_SUPPRESSED = "events-suppressed"
    """The kernel's rate limit hid messages, or the log was overwritten before it was read."""


@dataclass(frozen=True, slots=True)
class KernelEvent:
    """One event of this machine's kernel."""

    kind: EventKind
    severity: Severity
    origin: str
    """"log" or "trace"."""
    text: str
    """The kernel's line without its prefix."""
    uptime: float | None = None
    """Seconds since boot, None where the line has none."""
    fields: Mapping[str, int | str] = field(default_factory=dict)
    """What the line gives by name: gpa, pfn, error_code, ...; numbers parsed."""

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        return {
            "kind": self.kind.value,
            "severity": self.severity.value,
            "origin": self.origin,
            "uptime": self.uptime,
            "text": self.text,
            "fields": dict(self.fields),
        }


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    kind: EventKind
    severity: Severity


def _rule(pattern: str, kind: EventKind, severity: Severity) -> _Rule:
    return _Rule(re.compile(pattern), kind, severity)


_HEX = r"(?:0x)?[0-9a-f]{1,16}"
_LOG_RULES = (
    # arch/x86/virt/svm/sev.c, pr_fmt "SEV-SNP: "
    _rule(
        rf"SEV-SNP: RMPUPDATE failed for PFN (?P<pfn_hex>{_HEX}), pg_level: (?P<level>\d+), ret: (?P<ret>-?\d+)",
        EventKind.RMP_UPDATE_FAILED,
        Severity.CRITICAL,
    ),
    _rule(rf"SEV-SNP: Leaking PFN range (?P<first>{_HEX})-(?P<end>{_HEX})", EventKind.PAGES_LEAKED, Severity.WARNING),
    _rule(
        rf"SEV-SNP: PFN (?P<pfn>{_HEX}), RMP entry: \[(?P<low>{_HEX}) - (?P<high>{_HEX})\]",
        EventKind.RMP_DUMP,
        Severity.INFO,
    ),
    _rule(rf"SEV-SNP: PFN: (?P<pfn>{_HEX}), \[(?P<low>{_HEX}) - (?P<high>{_HEX})\]", EventKind.RMP_DUMP, Severity.INFO),
    _rule(rf"SEV-SNP: PFN (?P<pfn>{_HEX}) unassigned, dumping", EventKind.RMP_DUMP, Severity.INFO),
    _rule(
        rf"SEV-SNP: Failed to (?:read RMP (?:entry|contents)|split direct map) for PFN (?P<pfn>{_HEX})",
        EventKind.RMP_DUMP,
        Severity.WARNING,
    ),
    _rule(
        r"SEV-SNP: (?:Memory for the RMP table has not been reserved by BIOS|RMP configuration not valid"
        r"|Memory reserved for the RMP table does not cover full system RAM|Failed to map RMP table)",
        EventKind.SNP_DISABLED,
        Severity.CRITICAL,
    ),
    _rule(
        rf"SEV-SNP: RMP table physical range \[(?P<base>{_HEX}) - (?P<end>{_HEX})\]",
        EventKind.SNP_ENABLED,
        Severity.INFO,
    ),
    # drivers/iommu/amd/init.c and iommu.c, pr_fmt "AMD-Vi: "
    _rule(r"SNP cannot be supported", EventKind.SNP_DISABLED, Severity.CRITICAL),
    _rule(
        rf"Event logged \[RMP_(?:HW_ERROR|PAGE_FAULT) .*?vmg_tag=(?P<vmg_tag>{_HEX}), "
        rf"(?:spa=(?P<spa>{_HEX})|gpa=(?P<gpa>{_HEX}))",
        EventKind.IOMMU_RMP_FAULT,
        Severity.CRITICAL,
    ),
    # arch/x86/kvm/svm/sev.c, pr_fmt "kvm_amd: "
    _rule(rf"SEV: Unexpected RMP fault, .*?GPA (?P<gpa>{_HEX})", EventKind.RMP_FAULT_UNEXPECTED, Severity.WARNING),
    _rule(
        rf"SEV: Unable to split RMP entry for GPA (?P<gpa>{_HEX}) PFN (?P<pfn>{_HEX}) ret (?P<ret>-?\d+)",
        EventKind.RMP_SPLIT_FAILED,
        Severity.WARNING,
    ),
    _rule(
        rf"SEV-ES guest requested termination: (?P<reason_set>{_HEX}):(?P<reason>{_HEX})",
        EventKind.GUEST_TERMINATED,
        Severity.WARNING,
    ),
    _rule(r"SEV-SNP enabled \(ASIDs (?P<first_asid>\d+) - (?P<last_asid>\d+)\)", EventKind.SNP_ENABLED, Severity.INFO),
    # arch/x86/mm/fault.c
    _rule(rf"#PF: error_code\((?P<error_code>{_HEX})\) - RMP violation", EventKind.RMP_VIOLATION, Severity.CRITICAL),
    # drivers/virt/coco/sev-guest/sev-guest.c (arch/x86/coco/sev/core.c from Linux 6.14)
    _rule(
        r"Disabling (?:VMPCK|vmpck_id:? )(?P<vmpck>\d+) (?:communication key )?to prevent IV reuse",
        EventKind.EVIDENCE_KEY_LOST,
        Severity.CRITICAL,
    ),
    _rule(
        rf"Detected error from ASP request\. rc: (?P<ret>-?\d+), (?:exitinfo2|fw_err): (?P<exitinfo2>{_HEX})",
        EventKind.FIRMWARE_ERROR,
        Severity.WARNING,
    ),
    # drivers/crypto/ccp/sev-dev.c
    _rule(
        r"SEV-SNP: failed to INIT rc (?P<ret>-?\d+), error (?P<error>\S{1,18})",
        EventKind.SNP_DISABLED,
        Severity.CRITICAL,
    ),
    # lib/ratelimit.c, for the functions that print the lines above
    _rule(
        r"(?P<function>sev_handle_rmp_fault|amd_iommu_report_rmp_\w{1,16}|snp_\w{1,24}): "
        r"(?P<count>\d+) callbacks suppressed",
        EventKind.EVENTS_SUPPRESSED,
        Severity.WARNING,
    ),
)
_TRACE_RULES = (
    # arch/x86/kvm/trace.h
    _rule(
        rf"^kvm_rmp_fault: vcpu (?P<vcpu>\d+) gpa (?P<gpa_hex>{_HEX}) pfn (?P<pfn>{_HEX})"
        rf" error_code (?P<error_code>{_HEX}) rmp_level (?P<rmp_level>-?\d+) psmash_ret (?P<psmash_ret>-?\d+)",
        EventKind.RMP_FAULT,
        Severity.INFO,
    ),
    _rule(
        rf"^kvm_page_fault: vcpu (?P<vcpu>\d+) rip (?P<rip>{_HEX}) address (?P<address>{_HEX})"
        rf" error_code (?P<error_code>{_HEX})",
        EventKind.RMP_FAULT,
        Severity.INFO,
    ),
    # arch/x86/include/asm/trace/exceptions.h (include/trace/events/exceptions.h from Linux 6.16)
    _rule(
        rf"^page_fault_(?P<mode>user|kernel): address=(?P<address>\S{{1,128}}) ip=(?P<ip>\S{{1,128}})"
        rf" error_code=(?P<error_code>{_HEX})",
        EventKind.RMP_VIOLATION,
        Severity.CRITICAL,
    ),
)
_TRACE_PREFIX = re.compile(
    r"^\s*.{1,64}-\d{1,10}\s+(?:\([^)]{1,16}\)\s+)?\[\d{3,4}\]\s+\S{4,8}\s+(\d{1,12}\.\d{1,9}):\s+"
)
_LOST_TRACE = re.compile(r"^CPU:(?P<cpu>\d+) \[LOST (?P<count>\d+) EVENTS\]")
_KMSG_PREFIX = re.compile(r"^(\d{1,4}),(\d{1,20}),(\d{1,20}),[^;]{0,200};")
_DMESG_PREFIX = re.compile(r"^(?:<\d{1,3}>)?\[\s*(\d{1,12}\.\d{1,9})\]\s?(?:\[\s*[TC]\d+\]\s)?")
_SYSLOG_PREFIX = re.compile(r"^\S.{0,80}? kernel: (?:\[\s*(\d{1,12}\.\d{1,9})\] )?")
_SUPPRESSED_HERE = "pagegate: kernel log overwritten before it was read"


def events(lines: Iterable[str]) -> Iterator[KernelEvent]:
    """The events among `lines` of /dev/kmsg, dmesg, journalctl -k, or trace_pipe, in order."""
    for line in lines:
        event = parse_line(line)
        if event is not None:
            yield event


def parse_line(line: str) -> KernelEvent | None:
    """The event a line tells of, None for any other line. Never raises."""
    line = line[:_MAX_LINE].rstrip("\n")
    traced = _TRACE_PREFIX.match(line)
    if traced:
        return _match(_TRACE_RULES, line[traced.end() :], "trace", float(traced.group(1)))
    lost = _LOST_TRACE.match(line)
    if lost:
        return KernelEvent(
            EventKind.EVENTS_SUPPRESSED, Severity.WARNING, "trace", line, fields={"count": int(lost.group("count"))}
        )
    if line == _SUPPRESSED_HERE:
        return KernelEvent(EventKind.EVENTS_SUPPRESSED, Severity.WARNING, "log", line)
    text, uptime = _log_text(line)
    return None if text is None else _match(_LOG_RULES, text, "log", uptime)


def lost_log_line() -> str:
    """The line a reader puts in place of records that the kernel overwrote."""
    return _SUPPRESSED_HERE


def _log_text(line: str) -> tuple[str | None, float | None]:
    """A log line without its prefix, and its uptime; no text when user space wrote it."""
    record = _KMSG_PREFIX.match(line)
    if record:
        by_kernel = int(record.group(1)) < 8
        return (line[record.end() :] if by_kernel else None), int(record.group(3)) / 1e6
    stamped = _DMESG_PREFIX.match(line) or _SYSLOG_PREFIX.match(line)
    if stamped is None:
        return line, None
    return line[stamped.end() :], float(stamped.group(1)) if stamped.group(1) else None


def _match(rules: Iterable[_Rule], text: str, origin: str, uptime: float | None) -> KernelEvent | None:
    for rule in rules:
        found = rule.pattern.search(text)
        if found is None:
            continue
        fields = dict(_field(name, value) for name, value in found.groupdict().items() if value is not None)
        if origin == "trace" and not _failed_rmp_check(text, fields):
            return None
        return KernelEvent(rule.kind, _severity(rule, fields), origin, text, uptime, fields)
    return None


def _field(name: str, value: str) -> tuple[str, int | str]:
    """Numbers as numbers; `_hex` marks those that the kernel prints without 0x."""
    if name.endswith("_hex"):
        return name.removesuffix("_hex"), int(value, 16)
    if re.fullmatch(r"0x[0-9a-f]+", value):
        return name, int(value, 16)
    return name, int(value) if re.fullmatch(r"-?\d{1,20}", value) else value


def _failed_rmp_check(text: str, fields: Mapping[str, int | str]) -> bool:
    """Page faults are common; kvm_rmp_fault always is one, the others when bit 31 says so."""
    code = fields.get("error_code")
    return text.startswith("kvm_rmp_fault:") or (isinstance(code, int) and bool(code & _RMP_ERROR_BIT))


def _severity(rule: _Rule, fields: Mapping[str, int | str]) -> Severity:
    """A fault whose PSMASH failed is worth a look."""
    return Severity.WARNING if fields.get("psmash_ret") else rule.severity
