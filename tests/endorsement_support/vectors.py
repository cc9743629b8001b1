"""Certificates of real chips, by what they say."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from pagegate.endorsements.content import Content, parse_leaf
from pagegate.endorsements.request import request_from_report
from pagegate.evidence.model import EndorsementRequest


def sev_snp() -> Path:
    """The folder of SEV-SNP vectors: in $PAGEGATE_VECTORS, else in ../shared/vectors beside the repository."""
    beside = (folder / "shared" / "vectors" for folder in Path(__file__).parents[3:])
    places = [Path(os.environ["PAGEGATE_VECTORS"])] if "PAGEGATE_VECTORS" in os.environ else list(beside)
    return next(place for place in places if place.is_dir()) / "sev-snp"


def report(name: str) -> bytes:
    """The report of vector `name`."""
    return (sev_snp() / name / "report.bin").read_bytes()


def leaf_der(name: str) -> bytes:
    """The VCEK or VLEK of vector `name`."""
    folder = sev_snp() / name
    return next(folder.glob("v[cl]ek.der")).read_bytes()


def request(name: str) -> EndorsementRequest:
    """What the report of vector `name` needs; version 2 reports take the product from the vector's name."""
    product = name.split("-", maxsplit=1)[0].capitalize()
    return request_from_report(report(name), product)


def chain_pem(product: str, kind: str = "vcek") -> bytes:
    """KDS's cert_chain of `product`."""
    return (sev_snp() / "certs" / product.lower() / f"{kind}_chain.pem").read_bytes()


@cache
def leaves() -> tuple[Content, ...]:
    """Every VCEK that AMD signed among the vectors."""
    files = sorted(sev_snp().glob("*/vcek*.der"))
    return tuple(parse_leaf(file.read_bytes()) for file in files)
