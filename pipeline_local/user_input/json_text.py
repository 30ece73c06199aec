"""Strict JSON: what every reader of JSON takes."""

import json
import math
from typing import Any

Facts = dict[str, Any]
"""A JSON object: what a rank reports, or what a file of a run holds."""


def as_json(facts: Any, indent: int | None = None) -> str:  # noqa: ANN401 (any JSON value)
    """Returns strict JSON: a number that is not finite, which JSON does not have, becomes null."""
    return json.dumps(_strict(facts), indent=indent, allow_nan=False)


def _strict(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
