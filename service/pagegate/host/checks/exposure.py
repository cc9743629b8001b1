"""Devices of a guest through which its host can reach it, and how to do without each.

None is a hole by itself: each is a driver in the trusted kernel that parses what the host sends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pagegate.host.machine import Machine
from pagegate.host.model import Check, Context, Outcome, Side, passed, warned

_SOURCE = "Linux Documentation/security/snp-tdx-threat-model.rst"


@dataclass(frozen=True, slots=True)
class _Device:
    id: str
    title: str
    find: Callable[[Machine], str | None]
    """What of it is there, None when nothing is."""
    fix: str


def _virtio(number: int) -> Callable[[Machine], str | None]:
    """Looks for a virtio device by its id (OASIS virtio 1.2, section 5)."""

    def find(machine: Machine) -> str | None:
        folder = "/sys/bus/virtio/devices"
        found = [n for n in machine.names(folder) if machine.text(f"{folder}/{n}/device") == f"{number:#06x}"]
        return ", ".join(found) or None

    return find


def _kvm_clock(machine: Machine) -> str | None:
    available = machine.text("/sys/devices/system/clocksource/clocksource0/available_clocksource") or ""
    current = machine.text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    return f"offered by the host, current is {current}" if "kvm-clock" in available.split() else None


def _serial(machine: Machine) -> str | None:
    consoles = [line.split()[0] for line in (machine.text("/proc/consoles") or "").splitlines() if line]
    return ", ".join(name for name in consoles if name.startswith(("ttyS", "hvc"))) or None


def _ioapic(machine: Machine) -> str | None:
    lines = [line for line in (machine.text("/proc/interrupts") or "").splitlines() if "IO-APIC" in line]
    return f"{len(lines)} interrupts through it" if lines else None


def _path(path: str) -> Callable[[Machine], str | None]:
    return lambda machine: path if machine.exists(path) else None


_DEVICES = (
    _Device(
        "kvm-clock",
        "Paravirtual clock",
        _kvm_clock,
        "boot with no-kvmclock and use Secure TSC; QEMU: -cpu ...,kvmclock=off",
    ),
    _Device(
        "virtio-console",
        "virtio console",
        _virtio(3),
        "leave virtio-serial out of the guest; modprobe.blacklist=virtio_console",
    ),
    _Device(
        "virtio-balloon",
        "virtio balloon",
        _virtio(5),
        "leave the balloon out of the guest: the host chooses which pages leave",
    ),
    _Device("virtio-vsock", "virtio vsock", _virtio(19), "leave vhost-vsock out, or firewall what listens on it"),
    _Device(
        "virtio-fs",
        "virtio file system",
        _virtio(26),
        "use an encrypted block device: a shared file system's content is the host's",
    ),
    _Device("virtio-mem", "virtio memory hot plug", _virtio(24), "give the guest its memory at the start"),
    _Device(
        "serial",
        "Serial or hypervisor console",
        _serial,
        "drop console=ttyS0 or hvc0 from the command line: the host reads what is printed",
    ),
    _Device(
        "io-apic",
        "Legacy IOAPIC",
        _ioapic,
        "give the guest only PCI devices with MSI-X, so that no interrupt goes through it",
    ),
    _Device(
        "i8042",
        "PS/2 controller",
        _path("/sys/devices/platform/i8042"),
        "boot with i8042.noaux i8042.nokbd; QEMU: -machine ...,i8042=off",
    ),
    _Device(
        "fw-cfg",
        "QEMU fw_cfg",
        _path("/sys/firmware/qemu_fw_cfg"),
        "modprobe.blacklist=qemu_fw_cfg: its files are the host's, not measured",
    ),
    _Device("pvpanic", "pvpanic", _path("/sys/module/pvpanic"), "leave pvpanic out: it tells the host of crashes"),
    _Device("floppy", "Floppy controller", _path("/sys/module/floppy"), "leave it out: QEMU -machine q35 has none"),
)


def _check(device: _Device) -> Check:
    def run(context: Context) -> Outcome:
        found = device.find(context.machine)
        return passed("absent") if found is None else warned(found, device.fix)

    return Check(f"exposure.{device.id}", device.title, Side.GUEST, "absent", _SOURCE, run)


CHECKS = tuple(_check(device) for device in _DEVICES)
