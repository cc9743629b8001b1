"""Whom to believe and what they may do: one YAML file, checked key by key."""

from pagegate.evidence.policy.load import load_policy, parse_policy
from pagegate.evidence.policy.model import Identity, Policy

__all__ = ["Identity", "Policy", "load_policy", "parse_policy"]
