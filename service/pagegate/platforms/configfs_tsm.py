"""Evidence from the kernel's configfs-tsm interface, the one that new kernels prefer.

Source: Documentation/ABI/testing/configfs-tsm-report. Each request has an entry of its own; its generation counts
the writes, so that a reader can tell whether somebody else wrote to it. Writing inblob takes effect when the file
is closed, and the kernel loses an error then: only the generation shows it.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pagegate.errors import PlatformError
from pagegate.evidence.model import Evidence, EvidenceType
from pagegate.platforms.retry import PlatformBusyError, Retry
from pagegate.platforms.snp_evidence import require_report_data, require_vmpl, snp_evidence

_log = logging.getLogger(__name__)

ROOT = Path("/sys/kernel/config/tsm/report")
PROVIDER = "sev_guest"
_MAX_TEXT = 4096
_MAX_BLOB = 128 * 1024
_BUSY = frozenset((errno.EBUSY, errno.EAGAIN, errno.EINTR))


class ConfigfsTsmPlatform:
    """A guest whose kernel makes reports by configfs, as `pagegate.platforms.model.Platform`."""

    def __init__(
        self,
        root: Path = ROOT,
        *,
        privlevel: int | None = None,
        service_provider: str | None = None,
        certificates: bool = True,
        retry: Retry | None = None,
    ) -> None:
        """`privlevel` is the VMPL the report is to show, None for the lowest that this guest may ask for.
        `service_provider` is "svsm" to have the report made by an SVSM. `certificates` also reads the host's."""
        if privlevel is not None:
            require_vmpl(privlevel, "privlevel")
        self._root = root
        self._privlevel = privlevel
        self._service_provider = service_provider
        self._certificates = certificates
        self._retry = retry or Retry()

    @property
    def name(self) -> str:
        return "configfs-tsm"

    @property
    def evidence_type(self) -> EvidenceType:
        return EvidenceType.SEV_SNP

    @property
    def simulated(self) -> bool:
        return False

    def attest(self, report_data: bytes) -> Evidence:
        """Makes a report with these 64 bytes. Raises PlatformError."""
        require_report_data(report_data)
        return self._retry.run(lambda: self._attest_once(report_data))

    def _attest_once(self, report_data: bytes) -> Evidence:
        with self._entry() as entry:
            provider = _read_text(entry / "provider")
            if provider != PROVIDER:
                raise PlatformError(
                    "TSM_PROVIDER_UNSUPPORTED",
                    f"{self._root} is served by {provider!r}, supported is {PROVIDER!r}; run in an SEV-SNP guest",
                )
            before = _read_number(entry / "generation")
            writes = self._write_request(entry, report_data)
            report = _read(entry / "outblob", _MAX_BLOB)
            table = self._read_table(entry)
            after = _read_number(entry / "generation")
        if after != before + writes:
            raise PlatformBusyError(
                "TSM_REPORT_RACED",
                f"generation of the report entry went from {before} to {after} in {writes} writes: one was lost, or "
                "somebody else writes to the entry; see who else uses " + str(self._root),
            )
        return snp_evidence(report, table, report_data, str(self._root))

    @contextmanager
    def _entry(self) -> Iterator[Path]:
        """Makes an entry that nobody else knows of, and always removes it."""
        entry = self._root / f"pagegate-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            entry.mkdir()
        except OSError as error:
            raise _failed(error, entry, "make") from error
        try:
            yield entry
        finally:
            try:
                entry.rmdir()
            except OSError as error:
                # The evidence is good all the same: an entry left behind costs kernel memory, no more.
                _log.warning("cannot remove %s: %s; remove it by hand (rmdir)", entry, error.strerror)

    def _write_request(self, entry: Path, report_data: bytes) -> int:
        """Writes all options; returns how many writes that were."""
        options: dict[str, bytes] = {}
        if self._service_provider is not None:
            options["service_provider"] = self._service_provider.encode()
        privlevel = self._privlevel_for(entry)
        if privlevel is not None:
            options["privlevel"] = str(privlevel).encode()
        options["inblob"] = report_data
        for name, value in options.items():
            _write(entry / name, value)
        return len(options)

    def _privlevel_for(self, entry: Path) -> int | None:
        """The level to ask for; None to leave the kernel's default, 0."""
        floor_path = entry / "privlevel_floor"
        floor = _read_number(floor_path) if floor_path.exists() else 0
        if self._privlevel is None:
            return floor or None
        if self._privlevel < floor:
            raise PlatformError(
                "TSM_PRIVLEVEL_TOO_LOW",
                f"privlevel {self._privlevel} was asked for, this guest may ask for {floor} and above; "
                "leave the option out to have the lowest",
            )
        return self._privlevel

    def _read_table(self, entry: Path) -> bytes:
        path = entry / "auxblob"
        return _read(path, _MAX_BLOB) if self._certificates and path.exists() else b""


def _read(path: Path, limit: int) -> bytes:
    """Reads an attribute to its end; at most `limit` bytes."""
    content = bytearray()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while len(content) <= limit:
                chunk = os.read(descriptor, limit + 1 - len(content))
                if not chunk:
                    return bytes(content)
                content += chunk
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _failed(error, path, "read") from error
    raise PlatformError("TSM_ATTRIBUTE_INVALID", f"{path} has more than {limit} bytes")


def _read_text(path: Path) -> str:
    return _read(path, _MAX_TEXT).decode("ascii", "replace").strip()


def _read_number(path: Path) -> int:
    text = _read_text(path)
    if not text.isdecimal():
        raise PlatformError("TSM_ATTRIBUTE_INVALID", f"{path} holds {text!r}, not a number")
    return int(text)


def _write(path: Path, value: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(descriptor, value)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _failed(error, path, "write") from error
    if written != len(value):
        # Written in parts it would count as two writes.
        raise PlatformError("TSM_ATTRIBUTE_INVALID", f"{path} took {written} of {len(value)} bytes")


_REMEDIES = {
    errno.ENOENT: "load the driver (modprobe sev-guest) and mount configfs; kernels have it from 6.7 on",
    errno.ENXIO: "no driver serves it: load it (modprobe sev-guest), inside an SEV-SNP guest",
    errno.EACCES: "run as root, or be given the right to make entries there",
    errno.EPERM: "run as root, or be given the right to make entries there",
    errno.EINVAL: "see the kernel log; is the privilege level (privlevel) one that this guest may ask for?",
    errno.ENOTTY: "the kernel gave up its message key (VMPCK) after an error: see its log, start the guest again",
    errno.ETIMEDOUT: "the host throttles guest requests: raise its limit, and see the kernel log",
    errno.EIO: "the firmware or the host refused: see the kernel log",
}


def _failed(error: OSError, path: Path, verb: str) -> PlatformError:
    number = error.errno or 0
    what = f"cannot {verb} {path}: {os.strerror(number)}"
    if number in _BUSY:
        return PlatformBusyError("TSM_BUSY", f"{what}; it stayed busy, ask again later", retry_after=2.0)
    reason = "TSM_UNAVAILABLE" if verb == "make" else "TSM_REPORT_FAILED"
    return PlatformError(reason, f"{what}; {_REMEDIES.get(number, 'see the kernel log')}")
