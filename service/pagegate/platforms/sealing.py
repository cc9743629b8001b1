"""The sealing key of this machine, by a file or by SEV-SNP's derived key. The key itself stays in the bridge."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

import enclave_bridge as eb
from pagegate.errors import PlatformError
from pagegate.platforms import sev_guest
from pagegate.platforms.sev_guest import KeyFields, RootKey

SealingSource = Callable[[eb.Bridge], eb.Sealing]
"""Gets the sealing key into a bridge. Raises PlatformError."""

_KEY_BYTES = 32


def file_key(path: Path) -> SealingSource:
    """The key in a file, made on first use. Whoever can read the file has the key: for simulation, or where the file
    is on a disk that only this machine can read.

    PlatformError SEALING_KEY_FILE: the file is not this user's alone, not 32 bytes, or cannot be read or made.
    """

    def source(bridge: eb.Bridge) -> eb.Sealing:
        try:
            return _open_key(bridge, path) or _make_key(bridge, path)
        except OSError as error:
            raise PlatformError(
                "SEALING_KEY_FILE", f"cannot read or make the sealing key {path}: {error.strerror or error}"
            ) from error

    return source


def _open_key(bridge: eb.Bridge, path: Path) -> eb.Sealing | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        facts = os.fstat(fd)
        if facts.st_size != _KEY_BYTES:  # an empty one would get another key
            raise _unfit(path, facts)
        return eb.Sealing.from_file(bridge, fd)
    except eb.SealingError as error:
        raise _unfit(path, facts) from error
    finally:
        os.close(fd)


def _make_key(bridge: eb.Bridge, path: Path) -> eb.Sealing:
    """Under a name of its own first, so that a crash or another server leaves no half a key."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        sealing = eb.Sealing.from_file(bridge, fd)
        try:
            path.hardlink_to(made)
        except FileExistsError:
            sealing.close()
            return _open_key(bridge, path) or _make_key(bridge, path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return sealing
    except eb.SealingError as error:
        raise _unfit(path, os.fstat(fd)) from error
    finally:
        os.close(fd)
        made.unlink(missing_ok=True)


def _unfit(path: Path, facts: os.stat_result) -> PlatformError:
    return PlatformError(
        "SEALING_KEY_FILE",
        f"the sealing key {path} must be a regular file of uid {os.geteuid()}, mode 0600, with {_KEY_BYTES} bytes; it is "
        f"{stat.filemode(facts.st_mode)} of uid {facts.st_uid} with {facts.st_size} bytes. Restore it; with another key "
        "file-backed regions must be sent again",
    )


def snp_key(
    device: Path = sev_guest.DEVICE,
    *,
    fields: KeyFields = KeyFields.GUEST_POLICY | KeyFields.MEASUREMENT,
    root: RootKey = RootKey.VCEK,
    vmpl: int | None = None,
) -> SealingSource:
    """The firmware's key of this guest on this chip (SNP_GET_DERIVED_KEY).

    By default another launch measurement or guest policy has another key, and so has another chip or VCEK.
    PlatformError SEV_GUEST_*.
    """

    def source(bridge: eb.Bridge) -> eb.Sealing:
        try:
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PlatformError(
                "SEV_GUEST_UNAVAILABLE",
                f"cannot open {device} for the sealing key: {error.strerror}. Outside SEV-SNP, or where the disk is "
                "trusted, choose a key file (--sealing file); or serve regions in files with --unprotected",
            ) from error
        try:
            level = sev_guest.running_vmpl() if vmpl is None else vmpl
            return eb.Sealing.from_snp(bridge, fd, guest_fields=fields, root_key=root, vmpl=level)
        except eb.SealingError as error:
            raise _snp_refused(error) from error
        finally:
            os.close(fd)

    return source


def _snp_refused(error: eb.SealingError) -> PlatformError:
    failure = error.failure
    assert failure is not None
    if failure.status and not (failure.system_error or failure.fw_error or failure.vmm_error):
        return sev_guest.status_refused(failure.status)
    system = OSError(failure.system_error, os.strerror(failure.system_error)) if failure.system_error else None
    return sev_guest.request_failed(system, failure.fw_error, failure.vmm_error)
