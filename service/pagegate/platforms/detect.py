"""Which platforms this machine has, and opening one of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pagegate.errors import PlatformError
from pagegate.platforms import azure, configfs_tsm, sev_guest
from pagegate.platforms.model import Platform
from pagegate.platforms.simulated import SimulatedPlatform, SimulatedRoot, measurement_of

AUTO = "auto"
SIMULATED = "simulated"


@dataclass(frozen=True, slots=True)
class PlatformProbe:
    """What a look at one platform's traces on this machine found."""

    name: str
    available: bool
    """True when it is there and this process may use it. Nothing was asked of it yet."""
    attests: bool
    """True when it can make evidence bound to a handshake."""
    looked_at: str
    found: str
    remedy: str
    """What would make it available, or what to know about it."""


@dataclass(frozen=True, slots=True)
class PlatformPaths:
    """Where the kernel shows the platforms."""

    configfs_tsm: Path = configfs_tsm.ROOT
    sev_guest: Path = sev_guest.DEVICE
    vtpm: Path = azure.DEVICE


@dataclass(frozen=True, slots=True)
class SimulatedGuest:
    """Who a simulated guest is. Its evidence proves nothing."""

    directory: Path
    """State of the simulated root; peers that accept each other share the ARK in it."""
    measurement: bytes = measurement_of(b"pagegate")
    chip: str = "default"
    product: str = "Milan"
    host_data: bytes = bytes(32)


def detect(paths: PlatformPaths | None = None) -> list[PlatformProbe]:
    """Looks for each platform, the preferred first. Asks nothing of the hardware and never raises."""
    places = paths or PlatformPaths()
    return [_probe_configfs(places.configfs_tsm), _probe_sev_guest(places.sev_guest), _probe_azure(places.vtpm)]


def open_platform(
    name: str = AUTO,
    *,
    simulated: SimulatedGuest | None = None,
    vmpl: int | None = None,
    certificates: bool = True,
    paths: PlatformPaths | None = None,
) -> Platform:
    """Opens the platform called `name`, or with "auto" the preferred one that this machine has.

    `vmpl` and `certificates` are for the hardware platforms: see `SevGuestPlatform`. "auto" never gives the simulated
    one. Raises PlatformError PLATFORM_UNKNOWN, PLATFORM_NOT_FOUND (says what was looked at) or PLATFORM_UNAVAILABLE.
    """
    places = paths or PlatformPaths()
    makers: dict[str, Callable[[], Platform]] = {
        "configfs-tsm": lambda: configfs_tsm.ConfigfsTsmPlatform(
            places.configfs_tsm, privlevel=vmpl, certificates=certificates
        ),
        "sev-guest": lambda: sev_guest.SevGuestPlatform(places.sev_guest, vmpl=vmpl, certificates=certificates),
        "azure": lambda: azure.AzurePlatform(places.vtpm),
        SIMULATED: lambda: _open_simulated(simulated),
    }
    if name == SIMULATED:
        return makers[name]()
    probes = {probe.name: probe for probe in detect(places)}
    if name == AUTO:
        for probe in probes.values():
            if probe.available and probe.attests:
                return makers[probe.name]()
        raise _not_found(list(probes.values()))
    if name not in probes:
        raise PlatformError(
            "PLATFORM_UNKNOWN", f"no platform is called {name!r}; choose {AUTO} or one of {', '.join(makers)}"
        )
    if not probes[name].available:
        raise PlatformError("PLATFORM_UNAVAILABLE", f"platform {_line(probes[name])}")
    return makers[name]()


def _open_simulated(guest: SimulatedGuest | None) -> SimulatedPlatform:
    if guest is None:
        raise PlatformError(
            "PLATFORM_UNAVAILABLE",
            "the SIMULATED platform needs a state directory for its root and chips; give one, and know that its "
            "evidence proves nothing",
        )
    chip = SimulatedRoot.open_or_create(guest.directory, product=guest.product).chip(guest.chip)
    return SimulatedPlatform(chip, measurement=guest.measurement, host_data=guest.host_data)


def _not_found(probes: list[PlatformProbe]) -> PlatformError:
    looked = "\n".join(f"  - {_line(probe)}" for probe in probes)
    return PlatformError(
        "PLATFORM_NOT_FOUND",
        f"this machine has no platform that can attest a handshake. Looked at:\n{looked}\n"
        "To try pagegate without hardware name the platform `simulated`; its evidence proves nothing",
    )


def _line(probe: PlatformProbe) -> str:
    return f"{probe.name} ({probe.looked_at}): {probe.found}; {probe.remedy}"


def _probe_configfs(root: Path) -> PlatformProbe:
    remedy = "needs Linux 6.7 or later in an SEV-SNP guest, configfs mounted, the sev-guest module loaded"
    return _probe("configfs-tsm", root, os.W_OK | os.X_OK, remedy)


def _probe_sev_guest(device: Path) -> PlatformProbe:
    remedy = "needs an SEV-SNP guest with the sev-guest module loaded (modprobe sev-guest)"
    return _probe("sev-guest", device, os.R_OK | os.W_OK, remedy)


def _probe_azure(device: Path) -> PlatformProbe:
    remedy = "holds a report of the boot on Azure only, not fit for handshakes (needs vTPM quotes)"
    return _probe("azure", device, os.R_OK | os.W_OK, remedy, attests=False)


def _probe(name: str, path: Path, access: int, remedy: str, *, attests: bool = True) -> PlatformProbe:
    present = path.exists()
    usable = present and os.access(path, access)
    found = "present" if usable else "present, but this user may not use it: run as root" if present else "not there"
    return PlatformProbe(name, usable, attests, str(path), found, remedy)
