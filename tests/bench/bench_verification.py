"""Reports verified a second on one core, beside the floor: the bare ECDSA check by `cryptography`.

    python tests/bench/bench_verification.py [--json]

Medians of several rounds; the chain is cached, as it is for every report of a chip but the first.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pagegate.errors import EndorsementError
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.model import EndorsementRequest, Endorsements, Evidence, EvidenceType
from pagegate.evidence.policy import parse_policy
from pagegate.evidence.snp.anchors import amd_anchors
from pagegate.evidence.snp.certificate import parse_certificate
from pagegate.evidence.snp.report import SIGNED_BYTES, parse_report
from vectors import snp_vectors

ROUNDS, CALLS = 15, 100
NOW = datetime(2026, 6, 1, tzinfo=UTC)


class Nothing:
    """The evidence brings its leaf; the rest is shipped."""

    def find(self, request: EndorsementRequest) -> Endorsements:
        raise EndorsementError("ENDORSEMENT_OFFLINE", "offline")


def seconds_a_call(call: Callable[[], object]) -> float:
    """CPU seconds, so that other work on the machine does not count."""
    begin = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - begin) / CALLS


def main() -> None:
    """Measures both in turn, in one run."""
    vector = next(one for one in snp_vectors(genuine=True) if one.name == "genoa-v5-oak")
    leaf = vector.certificates[0]
    evidence = Evidence(EvidenceType.SEV_SNP, vector.report, (leaf,))
    measurement = parse_report(vector.report).measurement.hex()
    policy = parse_policy(f"version: 1\nidentities: [{{name: a, measurements: [{measurement}]}}]".encode())
    appraiser = EvidenceAppraiser(policy, anchors=amd_anchors(), endorsements=Nothing())
    key = parse_certificate(leaf).public_key
    assert isinstance(key, EllipticCurvePublicKey)
    parsed = parse_report(vector.report)
    signature = encode_dss_signature(parsed.signature_r, parsed.signature_s)
    signed = vector.report[:SIGNED_BYTES]

    def floor() -> None:
        key.verify(signature, signed, ECDSA(SHA384()))

    def appraise() -> None:
        assert appraiser.appraise(evidence, report_data=None, now=NOW).accepted

    appraise()
    pairs = [(seconds_a_call(floor), seconds_a_call(appraise)) for _ in range(ROUNDS)]
    bare, whole = (statistics.median(one[at] for one in pairs) for at in (0, 1))
    result = {
        "floor_us": round(bare * 1e6, 1),
        "appraise_us": round(whole * 1e6, 1),
        "reports_per_second": round(1 / whole),
        "ratio": round(statistics.median(one[1] / one[0] for one in pairs), 2),
    }
    if "--json" in sys.argv:
        print(json.dumps(result))
    else:
        print(f"bare ECDSA P-384 check   {result['floor_us']:>8} us")
        print(
            f"whole appraisal          {result['appraise_us']:>8} us   {result['reports_per_second']} reports a second"
        )
        print(f"ratio                    {result['ratio']:>8}      (target: at most 1.6; at least 400 a second)")


if __name__ == "__main__":
    main()
