"""The product's appraiser for the guests of the simulated root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.model import EndorsementRequest, Endorsements
from pagegate.evidence.policy import Policy
from pagegate.evidence.snp.anchors import simulated_anchor
from pagegate.platforms.simulated import SimulatedRoot
from support.platforms import Guests


class RootEndorsements:
    """What a simulated root endorses: its revocation list. Leaf and chain come with the evidence."""

    def __init__(self, root: SimulatedRoot) -> None:
        self._root = root

    def find(self, request: EndorsementRequest) -> Endorsements:
        """As `pagegate.evidence.model.EndorsementSource`."""
        return Endorsements(None, (), self._root.crl_der, "simulated root", datetime.now(UTC))


def appraiser_for(
    root: SimulatedRoot, guests: Mapping[str, Mapping[str, str]], *, allow_simulated: bool = True, **rules: Any
) -> EvidenceAppraiser:
    """Believes each guest by label and grants it its regions. The chip must be as new as the product's default TCB.

    `rules` go to every identity, by the names of the policy file.
    """
    floor = {part: level for part, level in asdict(root.product.default_tcb).items() if part != "fmc"}
    identities = [
        {
            "name": label,
            "measurements": [Guests.measurement(label).hex()],
            "regions": dict(regions),
            "tcb": {root.product.name: {"reported": floor}},
            **rules,
        }
        for label, regions in guests.items()
    ]
    return EvidenceAppraiser(
        Policy.model_validate({"version": 1, "identities": identities}),
        anchors=[simulated_anchor(root.product.name, root.ark_der)],
        endorsements=RootEndorsements(root),
        allow_simulated=allow_simulated,
    )
