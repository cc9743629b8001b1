"""Every check, in the order of the report."""

from pagegate.host.checks import bridge, exposure, hardware, kernel, service
from pagegate.host.model import Check

ALL: tuple[Check, ...] = (*hardware.CHECKS, *kernel.CHECKS, *service.CHECKS, *bridge.CHECKS, *exposure.CHECKS)
