"""Evidence from /dev/sev-guest by ioctl.

Source: linux/sev-guest.h and Documentation/virt/coco/sev-guest.rst of the kernel; the messages inside are those of
56860, Guest Messages. The kernel keeps the message keys and sequence numbers to itself.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path

from pagegate.errors import PlatformError
from pagegate.evidence.model import Evidence, EvidenceType
from pagegate.platforms.retry import PlatformBusyError, Retry
from pagegate.platforms.snp_evidence import (
    REPORT_BYTES,
    firmware_error_name,
    require_report_data,
    require_vmpl,
    snp_evidence,
)

DEVICE = Path("/dev/sev-guest")
RUNNING_VMPL = Path("/sys/devices/system/cpu/sev/vmpl")
"""Where kernels from 6.12 on say at which VMPL they run."""

_REQUEST = struct.Struct("@B7xQQII")
"""snp_guest_request_ioctl: msg_version, req_data, resp_data, fw_error, vmm_error."""
_REPORT_REQUEST = struct.Struct("@64sI28x")
"""snp_report_req: user_data, vmpl, reserved."""
_EXTENDED_REQUEST = struct.Struct("@96sQI4x")
"""snp_ext_report_req: snp_report_req, certs_address, certs_len."""
_KEY_REQUEST = struct.Struct("@I4xQIIQ")
"""snp_derived_key_req: root_key_select, reserved, guest_field_select, vmpl, guest_svn, tcb_version."""
_REPORT_RESPONSE_BYTES = 4000
_KEY_RESPONSE_BYTES = 64
_RESPONSE_HEADER = struct.Struct("<II24x")
"""MSG_REPORT_RSP: status, report size, reserved. MSG_KEY_RSP has the status there too, its size is reserved."""
_KEY_BYTES = 32


def _iowr(number: int) -> int:
    """_IOWR('S', number, struct snp_guest_request_ioctl)."""
    return 3 << 30 | _REQUEST.size << 16 | ord("S") << 8 | number


GET_REPORT = _iowr(0)
GET_DERIVED_KEY = _iowr(1)
GET_EXTENDED_REPORT = _iowr(2)

_MESSAGE_VERSION = 1
_VMM_ERROR_INVALID_LENGTH = 1
_VMM_ERROR_BUSY = 2
_NO_FIRMWARE_CALL = 0xFFFFFFFF
_PAGE = 4096
_CERTIFICATES_BYTES = 4 * _PAGE
"""What kernels accept at most (SEV_FW_BLOB_MAX_SIZE): asked for at once, a second round trip is rarely needed."""
_CERTIFICATES_LIMIT = 32 * _PAGE
_CERTIFICATE_ATTEMPTS = 3


class RootKey(IntEnum):
    """Which root a derived key comes from (56860, MSG_KEY_REQ)."""

    VCEK = 0
    VMRK = 1


class KeyFields(IntFlag):
    """Which of the guest's properties a derived key is bound to (56860, GUEST_FIELD_SELECT)."""

    GUEST_POLICY = 1 << 0
    IMAGE_ID = 1 << 1
    FAMILY_ID = 1 << 2
    MEASUREMENT = 1 << 3
    GUEST_SVN = 1 << 4
    TCB_VERSION = 1 << 5


@dataclass(frozen=True, slots=True)
class DerivedKeyRequest:
    """What a derived key is bound to. `guest_svn` and `tcb_version` count only when their field is selected."""

    fields: KeyFields
    root: RootKey = RootKey.VCEK
    vmpl: int = 0
    guest_svn: int = 0
    tcb_version: int = 0


class SevGuestPlatform:
    """A guest with the kernel's sev-guest device, as `pagegate.platforms.model.Platform`."""

    def __init__(
        self,
        device: Path = DEVICE,
        *,
        vmpl: int | None = None,
        certificates: bool = True,
        retry: Retry | None = None,
    ) -> None:
        """`vmpl` is the level the report is to show, None for the one the kernel runs at.
        `certificates` also asks for those that the host keeps for its guests."""
        self._device = device
        self._vmpl = running_vmpl() if vmpl is None else vmpl
        require_vmpl(self._vmpl, "vmpl")
        self._certificates = certificates
        self._retry = retry or Retry()

    @property
    def name(self) -> str:
        return "sev-guest"

    @property
    def evidence_type(self) -> EvidenceType:
        return EvidenceType.SEV_SNP

    @property
    def simulated(self) -> bool:
        return False

    def attest(self, report_data: bytes) -> Evidence:
        """Makes a report with these 64 bytes. Raises PlatformError."""
        require_report_data(report_data)
        request = _REPORT_REQUEST.pack(report_data, self._vmpl)
        with self._opened() as descriptor:
            if self._certificates:
                response, table = self._extended_report(descriptor, request)
            else:
                response, table = self._call(descriptor, GET_REPORT, request, _REPORT_RESPONSE_BYTES), b""
        return snp_evidence(_report_in(response), table, report_data, str(self._device))

    def derived_key(self, request: DerivedKeyRequest) -> bytearray:
        """Asks the firmware for the 32-byte key of this guest on this chip. The caller overwrites it after use.

        Raises PlatformError.
        """
        require_vmpl(request.vmpl, "vmpl of the derived key")
        packed = _KEY_REQUEST.pack(request.root, request.fields, request.vmpl, request.guest_svn, request.tcb_version)
        with self._opened() as descriptor:
            response = self._call(descriptor, GET_DERIVED_KEY, packed, _KEY_RESPONSE_BYTES)
        try:
            _require_status(response)
            return response[_RESPONSE_HEADER.size : _RESPONSE_HEADER.size + _KEY_BYTES]
        finally:
            response[:] = bytes(len(response))

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            descriptor = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PlatformError(
                "SEV_GUEST_UNAVAILABLE",
                f"cannot open {self._device}: {error.strerror}; run inside an SEV-SNP guest with the sev-guest driver "
                "(modprobe sev-guest) and as a user that may open the device",
            ) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _extended_report(self, descriptor: int, request: bytes) -> tuple[bytearray, bytes]:
        size = _CERTIFICATES_BYTES
        for _ in range(_CERTIFICATE_ATTEMPTS):
            table = ctypes.create_string_buffer(size)
            extended = bytearray(_EXTENDED_REQUEST.pack(request, ctypes.addressof(table), size))
            try:
                response = self._call(descriptor, GET_EXTENDED_REPORT, extended, _REPORT_RESPONSE_BYTES)
                return response, table.raw
            except _CertificateBufferTooSmallError:
                wanted = _EXTENDED_REQUEST.unpack(extended)[2]
                # The length is the host's word: it must grow, page by page, and end.
                if not size < wanted <= _CERTIFICATES_LIMIT or wanted % _PAGE:
                    break
                size = wanted
        raise PlatformError(
            "SEV_GUEST_CERTIFICATES_TOO_LARGE",
            f"the host's certificates do not fit: it asked for {wanted} bytes after {size} were offered, the limit is "
            f"{_CERTIFICATES_LIMIT}; put fewer into the host's table, or attest without them (certificates off)",
        )

    def _call(self, descriptor: int, command: int, request: bytes | bytearray, response_bytes: int) -> bytearray:
        """Makes one guest request, again while the host is busy. `request` gets what the kernel wrote into it."""
        return self._retry.run(lambda: _call_once(descriptor, command, request, response_bytes))


class _CertificateBufferTooSmallError(PlatformError):
    """The host has more certificates than fit the buffer; the request now holds the length it wants."""


def running_vmpl(path: Path = RUNNING_VMPL) -> int:
    """The VMPL the kernel runs at, 0 where it does not say."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _call_once(descriptor: int, command: int, request: bytes | bytearray, response_bytes: int) -> bytearray:
    request_buffer = ctypes.create_string_buffer(bytes(request), len(request))
    response = bytearray(response_bytes)
    response_view = (ctypes.c_char * response_bytes).from_buffer(response)
    call = bytearray(
        _REQUEST.pack(
            _MESSAGE_VERSION, ctypes.addressof(request_buffer), ctypes.addressof(response_view), _NO_FIRMWARE_CALL, 0
        )
    )
    try:
        fcntl.ioctl(descriptor, command, call, True)
        failure = None
    except OSError as error:
        failure = error
    finally:
        del response_view
    if isinstance(request, bytearray):
        request[:] = request_buffer.raw
    firmware_error, vmm_error = _REQUEST.unpack(call)[3:]
    if failure is not None or vmm_error or firmware_error not in (0, _NO_FIRMWARE_CALL):
        raise request_failed(failure, firmware_error, vmm_error) from failure
    return response


def request_failed(failure: OSError | None, firmware_error: int, vmm_error: int) -> PlatformError:
    """What a guest request that failed so means, and what to do."""
    number = (failure.errno or 0) if failure else 0
    if vmm_error == _VMM_ERROR_INVALID_LENGTH or number == errno.ENOSPC:
        return _CertificateBufferTooSmallError("SEV_GUEST_CERTIFICATES_TOO_LARGE", "certificate buffer too small")
    if vmm_error == _VMM_ERROR_BUSY or number in (errno.EAGAIN, errno.EBUSY):
        return PlatformBusyError(
            "SEV_GUEST_BUSY",
            "the host throttles guest requests and stayed busy; ask again later, or raise its limit",
            retry_after=2.0,
        )
    if vmm_error:
        return PlatformError(
            "SEV_GUEST_HOST_ERROR", f"the host refused the guest request with error {vmm_error}; see the host's log"
        )
    if firmware_error not in (0, _NO_FIRMWARE_CALL):
        return PlatformError(
            "SEV_GUEST_FIRMWARE_ERROR",
            f"the firmware refused the guest request: {firmware_error_name(firmware_error)}; see the kernel log",
        )
    reason, remedy = _KERNEL_REFUSALS.get(number, ("SEV_GUEST_IOCTL_FAILED", "see the kernel log"))
    return PlatformError(
        reason, f"the kernel refused the guest request: {os.strerror(number)} (errno {number}); {remedy}"
    )


_KERNEL_REFUSALS = {
    errno.ETIMEDOUT: (
        "SEV_GUEST_THROTTLED",
        "the host kept it waiting until the kernel gave up (60 s): raise the host's limit; the kernel may have given "
        "up its message key too, then start the guest again",
    ),
    errno.ENOTTY: (
        "SEV_GUEST_KEY_DISABLED",
        "this is no sev-guest device, or the kernel gave up its message key (VMPCK) after an error: see its log, "
        "then start the guest again",
    ),
    errno.EINVAL: (
        "SEV_GUEST_IOCTL_FAILED",
        "if only with certificates, the host has more than this kernel takes: attest without them (certificates off)",
    ),
}


def _require_status(response: bytearray) -> int:
    """Checks the status of a response message; returns its size field."""
    status, size = _RESPONSE_HEADER.unpack_from(response)
    if status:
        raise status_refused(status)
    return int(size)


def status_refused(status: int) -> PlatformError:
    """What a status of a response message means."""
    return PlatformError(
        "SEV_GUEST_FIRMWARE_ERROR",
        f"the firmware answered with status {firmware_error_name(status)}; if it is INVALID_PARAM, ask for a VMPL "
        "that is not below the one the guest runs at (option vmpl)",
    )


def _report_in(response: bytearray) -> bytes:
    size = _require_status(response)
    if size != REPORT_BYTES:
        raise PlatformError(
            "REPORT_UNEXPECTED", f"the firmware announces a report of {size} bytes; one has {REPORT_BYTES}"
        )
    return bytes(response[_RESPONSE_HEADER.size : _RESPONSE_HEADER.size + size])
