"""What both processes of a benchmark share: the simulated platform, a policy, a TLS certificate."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pagegate.endorsements import EndorsementSettings, build_source
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.policy import load_policy
from pagegate.evidence.snp.anchors import simulated_anchor
from pagegate.platforms.simulated import SimulatedPlatform, SimulatedRoot, measurement_of

SERVER, CLIENT = "bench-server", "bench-client"
_POLICY = """\
version: 1
identities:
  - name: bench-server
    measurements: ["{server}"]
  - name: bench-client
    measurements: ["{client}"]
    regions: {{ book: read-write }}
"""


def platform(directory: Path, workload: str) -> SimulatedPlatform:
    """The simulated guest of a workload."""
    root = SimulatedRoot.open_or_create(directory / "simulated", progress=lambda _line: None)
    return SimulatedPlatform(root.chip(workload), measurement=measurement_of(workload.encode()))


def appraiser(directory: Path) -> EvidenceAppraiser:
    """The real appraiser, under a policy that knows both workloads."""
    root = SimulatedRoot.open_or_create(directory / "simulated", progress=lambda _line: None)
    policy = directory / "policy.yaml"
    policy.write_text(
        _POLICY.format(server=measurement_of(SERVER.encode()).hex(), client=measurement_of(CLIENT.encode()).hex()),
        encoding="utf-8",
    )
    return EvidenceAppraiser(
        load_policy(policy),
        anchors=[simulated_anchor("Milan", root.ark_der)],
        endorsements=build_source(EndorsementSettings(offline=True)),
        allow_simulated=True,
    )


def certificate(directory: Path) -> tuple[bytes, bytes]:
    """A self-signed certificate for 127.0.0.1 and its key (PEM), written to `directory`/tls.pem as well."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pagegate bench")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    (directory / "tls.pem").write_bytes(made)
    return made, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
