"""A verdict as a signed attestation result for relying parties: EAR (draft-ietf-rats-ear-04) as a JWT with ES384.

The trustworthiness vector uses the values of AR4SI (draft-ietf-rats-ar4si).
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from pagegate.errors import EvidenceError
from pagegate.evidence.model import Verdict
from pagegate.evidence.verdict import verdict_to_dict

PROFILE: Final = "tag:ietf.org,2026:rats/ear#04"
MAX_TOKEN_BYTES: Final = 64 * 1024
_HEADER: Final = {"alg": "ES384", "typ": "JWT"}
_COORDINATE: Final = 48
_AFFIRMING, _APPROVED_AT_BOOT, _UNRECOGNISED_CODE, _CONTRAINDICATED, _UNRECOGNISED, _CRYPTO_FAILED = (
    2,
    3,
    33,
    96,
    97,
    99,
)
_IDENTITY_CODES = frozenset({"SNP_CHIP_ID", "SNP_CHIP_ID_MASKED", "SNP_CSP_ID"})
_EXECUTABLE_CODES = frozenset({"SNP_MEASUREMENT", "SNP_ID_KEY", "SNP_AUTHOR_KEY", "SNP_GUEST_SVN"})
_HARDWARE_CODES = frozenset(
    {"SNP_TCB_BELOW_FLOOR", "SNP_TCB_FLOOR_MISSING", "SNP_FIRMWARE_VERSION", "SNP_FIRMWARE_PROVISIONAL"}
    | {"SNP_MITIGATIONS", "SNP_CERT_REVOKED", "SNP_CERT_EXPIRED", "SNP_PRODUCT_REFUSED"}
)


def sign_result(
    verdict: Verdict, key: EllipticCurvePrivateKey, *, now: datetime, lifetime: timedelta, nonce: str | None = None
) -> str:
    """The verdict as a signed JWT. `key` is on P-384; `nonce` (8 to 88 characters) is the relying party's."""
    _require_p384(key.curve.name)
    claims: dict[str, object] = {
        "eat_profile": PROFILE,
        "iat": int(now.timestamp()),
        "exp": int((now + lifetime).timestamp()),
        "ear_verifier_id": {"developer": "pagegate", "build": f"pagegate {version('pagegate')}"},
        "submods": {"sev-snp": _submodule(verdict)},
    }
    if nonce is not None:
        claims["eat_nonce"] = nonce
    signed = f"{_encode(_json(_HEADER))}.{_encode(_json(claims))}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ECDSA(SHA384())))
    return f"{signed}.{_encode(r.to_bytes(_COORDINATE, 'big') + s.to_bytes(_COORDINATE, 'big'))}"


def verify_result(token: str, key: EllipticCurvePublicKey, *, now: datetime) -> dict[str, Any]:
    """The claims of a result that `key` signed and that has not expired. Raises EvidenceError EAR_INVALID."""
    _require_p384(key.curve.name)
    try:
        if len(token) > MAX_TOKEN_BYTES:
            raise ValueError(f"longer than {MAX_TOKEN_BYTES} characters")
        head, body, tail = token.split(".")
        signature = _decode(tail)
        if json.loads(_decode(head)) != _HEADER or len(signature) != 2 * _COORDINATE:
            raise ValueError("not a JWT signed with ES384")
        r, s = (int.from_bytes(signature[at : at + _COORDINATE], "big") for at in (0, _COORDINATE))
        key.verify(encode_dss_signature(r, s), f"{head}.{body}".encode(), ECDSA(SHA384()))
        claims = json.loads(_decode(body))
        if claims.get("eat_profile") != PROFILE:
            raise ValueError(f"profile {claims.get('eat_profile')!r}, expected {PROFILE}")
        if not claims["iat"] <= now.timestamp() < claims["exp"]:
            raise ValueError("not valid at this time")
    except InvalidSignature:
        raise EvidenceError("EAR_INVALID", "attestation result: the signature does not verify with this key") from None
    except (ValueError, KeyError, TypeError, AttributeError, Base64Error, RecursionError) as error:
        raise EvidenceError("EAR_INVALID", f"attestation result cannot be used: {error}") from None
    return dict(claims)


def trust_vector(verdict: Verdict) -> dict[str, int]:
    """AR4SI claims of a verdict."""
    codes = {failure.code for failure in verdict.failures}
    if verdict.claims is None:
        return {"hardware": _CRYPTO_FAILED}
    debug = any(failure.code == "SNP_GUEST_POLICY" and "debug" in failure.field for failure in verdict.failures)
    hardware = _CONTRAINDICATED if codes & _HARDWARE_CODES else _AFFIRMING
    known = _IDENTITY_CODES | _EXECUTABLE_CODES | _HARDWARE_CODES
    return {
        "instance_identity": _UNRECOGNISED if codes & _IDENTITY_CODES else _AFFIRMING,
        "configuration": _CONTRAINDICATED if codes - known else _AFFIRMING,
        "executables": _UNRECOGNISED_CODE if codes & _EXECUTABLE_CODES else _APPROVED_AT_BOOT,
        "hardware": _UNRECOGNISED if verdict.simulated else hardware,
        "runtime_opaque": _CONTRAINDICATED if debug else _AFFIRMING,
    }


def _submodule(verdict: Verdict) -> dict[str, object]:
    vector = trust_vector(verdict)
    status = "affirming" if verdict.accepted else "contraindicated"
    if verdict.accepted and max(vector.values()) >= _CONTRAINDICATED:
        status = "contraindicated"
    submodule: dict[str, object] = {
        "ear_status": status,
        "ear_trustworthiness_vector": vector,
        "pagegate.verdict": verdict_to_dict(verdict),
    }
    if verdict.policy_digest:
        submodule["ear_appraisal_policy_ids"] = [f"sha256:{verdict.policy_digest}"]
    return submodule


def _require_p384(curve: str) -> None:
    if curve != SECP384R1.name:
        raise EvidenceError("EAR_KEY_UNSUITABLE", f"attestation results are signed on P-384, the key is on {curve}")


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
