"""Software "chips": evidence in the real formats from a root of their own. SIMULATED, it proves nothing."""

from pagegate.platforms.simulated.platform import SimulatedPlatform, measurement_of
from pagegate.platforms.simulated.products import PRODUCTS, Product, Tcb
from pagegate.platforms.simulated.report import ReportFields
from pagegate.platforms.simulated.root import SimulatedChip, SimulatedRoot

__all__ = [
    "PRODUCTS",
    "Product",
    "ReportFields",
    "SimulatedChip",
    "SimulatedPlatform",
    "SimulatedRoot",
    "Tcb",
    "measurement_of",
]
