"""JSON's types, kept: "8" is no number and true is none, though Python's libraries would take them for one.

Pydantic judges a body first, in its own words. What it took is then held against the same classes' JSON Schema, so that
nothing is silently made into something else.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.errors import invalid, pointer_of
from service.openapi_specs import refine_specs
from sweeps.comparison_spec import ComparisonSpec
from sweeps.control import EDITS
from sweeps.spec import RunSpec, SweepSpec

Json = dict[str, Any]
Fault = tuple[str, str]

_MODELS: tuple[type[BaseModel], ...] = (SweepSpec, RunSpec, ComparisonSpec, *EDITS.values())
_PYTHON: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (Mapping,),
    "array": (list, tuple),
}
_ARTICLES = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}


def check_types(model: type[BaseModel], body: Any) -> None:
    """Hold a body that `model` has accepted against its schema. Raises Invalid (422) with one pointer per fault."""
    schemas = schemas_of_bodies()
    if faults := _faults(schemas[model.__name__], body, schemas, ()):
        raise invalid(faults)


@cache
def schemas_of_bodies() -> dict[str, Json]:
    """JSON Schemas by the model's name, made at the first call: the application's start, not its first requests."""
    schemas: dict[str, Json]
    _, whole = models_json_schema([(model, "validation") for model in _MODELS], ref_template="{model}")
    schemas = whole["$defs"]
    refine_specs(schemas)
    return schemas


def _faults(schema: Json, value: Any, schemas: Mapping[str, Json], place: tuple[object, ...]) -> list[Fault]:
    if "$ref" in schema:
        schema = schemas[schema["$ref"]]
    branches = schema.get("anyOf") or schema.get("oneOf")
    if branches:
        found = [_faults(branch, value, schemas, place) for branch in branches]
        return [] if not all(found) else _nearest(found)
    if "const" in schema and value != schema["const"]:
        return [(pointer_of(place), f"must be {schema['const']!r}")]
    kind = schema.get("type")
    if kind is None:
        return []
    if not _is(kind, value):
        return [(pointer_of(place), f"must be {_ARTICLES.get(kind, kind)}, not {_shown(value)}")]
    if kind == "object":
        inner = {key: _of_key(schema, key) for key in value}
        return [f for key, each in value.items() for f in _faults(inner[key], each, schemas, (*place, key))]
    if kind == "array":
        items = schema.get("items", {})
        return [f for index, each in enumerate(value) for f in _faults(items, each, schemas, (*place, index))]
    return []


def _is(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _PYTHON[kind])


def _of_key(schema: Json, key: str) -> Json:
    more = schema.get("additionalProperties")
    known: Json | None = schema.get("properties", {}).get(key)
    return known if known is not None else more if isinstance(more, dict) else {}


def _nearest(found: list[list[Fault]]) -> list[Fault]:
    """The faults of the alternative that was meant: the one in which the fault lies deepest."""
    return max(found, key=lambda faults: (max(pointer.count("/") for pointer, _ in faults), -len(faults)))


def _shown(value: Any) -> str:
    return repr(value)[:40]
