"""The audit log: what was decided, in an order nobody can change unseen.

`AuditLog` appends and reads; `AuditReader` only reads; `verify_log` says whether a log is whole.
docs/audit.md describes the format and what the chain proves.
"""

from pagegate.audit.entry import AuditEntry, AuditKind, LogState, SignedHead
from pagegate.audit.log import AuditLog, AuditReader
from pagegate.audit.verify import Finding, VerifyReport, verify_log

__all__ = [
    "AuditEntry",
    "AuditKind",
    "AuditLog",
    "AuditReader",
    "Finding",
    "LogState",
    "SignedHead",
    "VerifyReport",
    "verify_log",
]
