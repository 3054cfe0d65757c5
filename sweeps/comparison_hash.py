"""The mark by which a comparison's result and its record know each other. Light."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def comparison_hash(values: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of a spec.json as it was written: an upgrade in between changes no hash."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
