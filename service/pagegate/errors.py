"""The errors of pagegate: typed, with a stable reason code a caller can act on.

One table (`pagegate.rpc.errors`) maps each reason to one gRPC status code.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class PagegateError(Exception):
    """Base of every error pagegate raises on purpose.

    `reason` is a stable upper-case code (google.rpc.ErrorInfo.reason). `str(error)` is for the
    operator: what failed, the value, the limit, what to do. `metadata` may be shown to a peer,
    so it never holds a reference value, a path or a secret.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.retry_after = retry_after
        """Seconds after which the same call may succeed; None when it will not."""

    def __str__(self) -> str:
        return f"{self.message} [{self.reason}]"


class EvidenceError(PagegateError):
    """Evidence cannot be parsed, made or appraised at all (a rejected appraisal is a Verdict)."""


class EndorsementError(PagegateError):
    """Certificates or revocation lists that an appraisal needs are not to be had."""


class PolicyError(PagegateError):
    """A policy file is not usable; says where and why."""


class PlatformError(PagegateError):
    """This machine cannot make the evidence asked for."""


class HandshakeError(PagegateError):
    """An attestation handshake was refused or broke off."""


class TransferError(PagegateError):
    """A page, a transfer or a region access was refused."""


class BridgeError(PagegateError):
    """The enclave bridge refused a call; `reason` is the name of its status without EB_ERR_."""


class ConfigError(PagegateError):
    """An option or configuration file is not usable."""


class AuditError(PagegateError):
    """The audit log cannot be written or read, or is not what this process left there."""
