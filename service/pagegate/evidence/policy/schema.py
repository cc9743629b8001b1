"""The JSON Schema of policies, made from the model, so that it cannot say something else."""

from __future__ import annotations

import json

from pagegate.evidence.policy.model import Policy


def schema_text() -> str:
    """JSON Schema (2020-12) of a policy file, with a newline at the end."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Policy.model_json_schema(mode="validation")}
    schema["title"] = "pagegate policy"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
