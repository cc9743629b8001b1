"""`pagegate measure`: the launch measurement that a guest will have."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from pagegate.cli._evidence import UnreadableError
from pagegate.errors import EvidenceError

_MODES = {"snp": "SEV_SNP", "snp-svsm": "SEV_SNP_SVSM"}
_FILE = click.Path(path_type=Path)


@click.command("measure")
@click.option("--ovmf", type=_FILE, required=True, help="Firmware image (OVMF).")
@click.option("--kernel", type=_FILE, help="Kernel, when it is measured (kernel-hashes=on).")
@click.option("--initrd", type=_FILE, help="Initial RAM disk, with --kernel.")
@click.option("--append", help="Kernel command line, with --kernel.")
@click.option("--vcpus", type=click.IntRange(1, 4096), default=1, show_default=True, help="Number of virtual CPUs.")
@click.option("--vcpu-type", help="QEMU CPU model, such as EPYC-v4.")
@click.option("--vcpu-signature", type=str, help="CPUID Fn1 EAX of the virtual CPU instead, such as 0x800f12.")
@click.option("--vmm", type=click.Choice(["qemu", "ec2", "gce"]), default="qemu", show_default=True, help="Hypervisor.")
@click.option("--guest-features", default="0x1", show_default=True, help="SEV_FEATURES of the guest.")
@click.option("--ovmf-hash", help="Launch digest of the firmware alone (hex), in place of its pages.")
@click.option("--mode", type=click.Choice(list(_MODES)), default="snp", show_default=True, help="With or without SVSM.")
@click.option("--svsm", type=_FILE, help="SVSM image, for --mode snp-svsm.")
@click.option("--vars-size", type=click.IntRange(0, 2**30), help="Size of OVMF_VARS, for --mode snp-svsm.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    ovmf: Path,
    kernel: Path | None,
    initrd: Path | None,
    append: str | None,
    vcpus: int,
    vcpu_type: str | None,
    vcpu_signature: str | None,
    vmm: str,
    guest_features: str,
    ovmf_hash: str | None,
    mode: str,
    svsm: Path | None,
    vars_size: int | None,
    as_json: bool,
) -> None:
    """Compute the launch measurement of a guest from its firmware, kernel, initrd and command line.

    The result goes under `measurements` of a policy. Needs the sev-snp-measure library:
    `pip install 'pagegate[measure]'`.

    \b
    Examples:
      pagegate measure --ovmf OVMF.fd --vcpus 4 --vcpu-type EPYC-v4
      pagegate measure --ovmf OVMF.fd --kernel vmlinuz --initrd initrd.img --append "console=ttyS0" \\
          --vcpu-type EPYC-Milan --json

    \b
    Exit codes: 0 computed, 1 the library is missing, 3 an input cannot be used.
    """
    if (initrd or append is not None) and kernel is None:
        raise click.UsageError("--initrd and --append are measured only with --kernel")
    if mode == "snp-svsm" and (svsm is None or vars_size is None):
        raise click.UsageError("--mode snp-svsm needs --svsm and --vars-size")
    if vcpu_type is not None and vcpu_signature is not None:
        raise click.UsageError("--vcpu-type and --vcpu-signature exclude each other")
    for path in (ovmf, kernel, initrd, svsm):
        if path is not None and not path.exists():
            raise UnreadableError("FILE_UNREADABLE", f"{path} is not there")
    try:
        measurement = (
            _library("guest")
            .calc_launch_digest(
                mode=getattr(_library("sev_mode").SevMode, _MODES[mode]),
                vcpus=vcpus,
                vcpu_sig=_signature(vcpu_type, vcpu_signature, vmm),
                ovmf_file=str(ovmf),
                kernel=None if kernel is None else str(kernel),
                initrd=None if initrd is None else str(initrd),
                append=append,
                guest_features=_number(guest_features, "--guest-features"),
                snp_ovmf_hash_str=ovmf_hash or "",
                vmm_type=_vmm(vmm),
                svsm_file=None if svsm is None else str(svsm),
                ovmf_vars_size=vars_size or 0,
            )
            .hex()
        )
    except (OSError, RuntimeError, ValueError, AssertionError, KeyError, IndexError) as error:
        raise UnreadableError("MEASURE_INPUT_UNUSABLE", f"cannot measure this: {error}") from error
    click.echo(json.dumps({"measurement": measurement}) if as_json else measurement)


def _library(name: str) -> Any:
    try:
        return import_module(f"sevsnpmeasure.{name}")
    except ImportError:
        raise EvidenceError(
            "MEASURE_LIBRARY_MISSING", "the sev-snp-measure library is not installed: pip install 'pagegate[measure]'"
        ) from None


def _vmm(name: str) -> Any:
    vmm_type = _library("vmm_types").VMMType
    return {"qemu": vmm_type.QEMU, "ec2": vmm_type.ec2, "gce": vmm_type.gce}[name]


def _signature(vcpu_type: str | None, signature: str | None, vmm: str) -> int:
    if signature is not None:
        return _number(signature, "--vcpu-signature")
    known: dict[str, int] = _library("vcpu_types").CPU_SIGS
    if vcpu_type is None:
        if vmm == "gce":
            return 0
        raise click.UsageError("give --vcpu-type or --vcpu-signature: the CPU is part of the measurement")
    if vcpu_type not in known:
        raise click.UsageError(f"--vcpu-type {vcpu_type} is not known; known are {', '.join(sorted(known))}")
    return known[vcpu_type]


def _number(text: str, option: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise click.UsageError(f"{option} {text!r} is not a number such as 0x21") from None
    if not 0 <= value < 2**64:
        raise click.UsageError(f"{option} {text} does not fit 64 bits")
    return value
