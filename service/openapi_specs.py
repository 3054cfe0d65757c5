"""What specs mean beyond their types, as JSON Schema: legal words, short forms, the bounds of plain dataclasses.

The classes of `sweeps` check all this themselves, in their own words; here it is only told, so that a client can see it
before it asks. A line that is not true is found by `tests/service/test_contract.py`.
"""

from collections.abc import Mapping
from typing import Any

from simpo.config import MAX_TEMPLATE
from simpo.methods import METHODS
from sweeps.constraints import PROBES
from sweeps.gates import FIGURES

Json = dict[str, Any]

_WORD = {"type": "string"}
_RATE = r"^\s*(<=|>=)\s*-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?\s*$"
_RULE = r"^\s*(<=|>=|<|>)\s*-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?\s*$"
_HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:\S+)?"
_MODEL = f"^(practice|/.+|{_HUB_ID})$"
_DATA = f"^(practice|dst_[0-9a-z]+|/.+|{_HUB_ID})$"
_POSITIVE = {"exclusiveMinimum": 0}
_SHARE = {"minimum": 0, "maximum": 1}


def refine(schemas: dict[str, Json]) -> None:
    """Complete the components of the document, in place."""
    refine_specs(schemas)
    for name in ("EvaluationIn", "PromotionIn"):
        _refine_gate(schemas[name]["properties"]["gate"]["anyOf"][1]["properties"]["conditions"])
    schemas["ExtendBody"]["minProperties"] = 1
    schemas["WebhookIn"]["properties"]["url"]["pattern"] = "^https?://"


def refine_specs(schemas: dict[str, Json]) -> None:
    """Complete those of sweeps, runs and comparisons, in place. What a later version no longer has is passed over."""
    for name in ("SweepSpec", "RunSpec", "ComparisonSpec"):
        _refine_job(schemas[name]["properties"])
    _refine_shorthands(schemas)
    for kind in schemas["LoraConfig"]["properties"]["targets"]["anyOf"]:
        if kind["type"] == "array":
            kind["minItems"] = 1
    for name, fields in _BOUNDS.items():
        for field, more in fields.items():
            _add(schemas[name]["properties"], field, more)


def _refine_job(fields: Json) -> None:
    _add(fields, "name", {"pattern": "^[a-z0-9-]{1,63}$"})
    fields["constraints"] |= {
        "propertyNames": {"enum": list(PROBES)},
        "additionalProperties": {"type": "string", "pattern": _RATE},
    }
    _add(fields, "base_model", {"pattern": _MODEL})
    fields["dataset"] = _or_word(fields["dataset"], {**_WORD, "pattern": _DATA})


def _refine_shorthands(schemas: Mapping[str, Json]) -> None:
    methods = {**_WORD, "enum": sorted(METHODS)}
    _add(schemas["SweepSpec"]["properties"], "method", {"enum": sorted(METHODS)})
    _add(schemas["Contender"]["properties"], "method", {"enum": sorted(METHODS)})
    run = schemas["RunSpec"]["properties"]
    run["method"] = _or_word({**run["method"], "required": ["name"], "properties": {"name": methods}}, methods)
    compared = schemas["ComparisonSpec"]["properties"]
    compared["methods"]["items"] = _or_word(compared["methods"]["items"], methods)
    for name in ("SweepSpec", "ComparisonSpec"):
        fields = schemas[name]["properties"]
        for field in ("sampler", "scheduler"):
            kinds = sorted(fields[field]["discriminator"]["mapping"])
            fields[field] = _or_word(fields[field], {**_WORD, "enum": kinds})
        metrics = schemas["Objective"]["properties"]["metric"]["enum"]
        fields["objective"] = _or_word(fields["objective"], {**_WORD, "enum": metrics})
    several = schemas["SweepSpec"]["properties"]["objective"]
    several["anyOf"].append({"type": "array", "minItems": 1, "items": {"anyOf": list(several["anyOf"])}})


def _refine_gate(conditions: Json) -> None:
    rule = {"anyOf": [{"type": "string", "pattern": _RULE}, {"type": "null"}]}
    conditions |= {"propertyNames": {"enum": list(FIGURES)}, "additionalProperties": rule}


def _or_word(schema: Json, word: Json) -> Json:
    """The schema, or its short form. What annotates it stays outside."""
    outside: Json = {key: schema[key] for key in ("default", "title", "description") if key in schema}
    return {"anyOf": [{key: value for key, value in schema.items() if key not in outside}, word], **outside}


def _add(fields: Json, field: str, more: Json) -> None:
    """Beside the type, wherever in the field that stands."""
    if field not in fields:
        return
    kinds = [each for each in fields[field].get("anyOf", ()) if each.get("type") != "null"]
    (kinds[0] if kinds else fields[field]).update(more)


_BOUNDS: Mapping[str, Mapping[str, Json]] = {
    "Optim": {
        "warmup_fraction": _SHARE,
        "decay_fraction": _SHARE,
        "weight_decay": {"minimum": 0},
        "beta1": _SHARE,
        "beta2": _SHARE,
        "eps": _POSITIVE,
        "max_grad_norm": _POSITIVE,
    },
    "LoraConfig": {
        "rank": {"minimum": 1},
        "alpha": _POSITIVE,
        "seed": {"minimum": 0},
        "dropout": {"const": 0},
    },
    "Dataset": {"train": {"pattern": _DATA}, "eval": {"pattern": _DATA}},
    "TokenPolicy": {
        "max_length": {"minimum": 8},
        "max_prompt_length": {"minimum": 2},
        "chat_template": {"maxLength": MAX_TEMPLATE, "minLength": 1},
    },
    "Choice": {"choices": {"minItems": 1, "uniqueItems": True}},
    "LogFloatRange": {"low": _POSITIVE, "high": _POSITIVE},
    "FloatRange": {"step": _POSITIVE},
    "IntRange": {"step": {"minimum": 1}},
    "Halving": {"rungs": {"minItems": 1, "uniqueItems": True}},
    "Asha": {"rungs": {"minItems": 1, "uniqueItems": True}},
    "Median": {"rungs": {"minItems": 1, "uniqueItems": True}},
    "Finals": {"extra": {"uniqueItems": True}, "scales": {"uniqueItems": True}},
    "JudgeEndpoint": {
        "url": {"pattern": r"^https?://[^\s/@\\?#]+[^\s@\\?#]*$"},
        "api_key_env": {"pattern": "^[A-Z][A-Z0-9_]{0,59}_API_KEY$"},
        "max_requests": {"minimum": 400},
    },
    "Endpoint": {
        "url": {"pattern": r"^https?://[^\s/@\\?#]+[^\s@\\?#]*$"},
        "api_key_env": {"pattern": "^[A-Z][A-Z0-9_]{0,59}_API_KEY$"},
    },
}
