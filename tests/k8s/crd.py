"""What an API server would say to a custom resource, without one.

The openAPIV3Schema of a CRD becomes a JSON Schema; before validating, nulls of non-nullable fields are dropped and
defaults filled in, as apiextensions-apiserver does (without those two steps five of KubeRay's own samples would be
refused). The CEL rules are translated by hand in `cel.py`.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import ValidationError  # type: ignore[import-untyped]

from tests.k8s import cel

Json = dict[str, Any]

_INT_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
_KEPT = (
    *("required", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "multipleOf"),
    *("minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties"),
)
_OBJECT_META = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}


class CustomKinds:
    """The custom kinds found in a folder of CRDs."""

    def __init__(self, schemas: dict[tuple[str, str], Json]) -> None:
        """`schemas`: openAPIV3Schema by (apiVersion, kind)."""
        self._schemas = schemas
        self._validators = {key: Draft202012Validator(json_schema(schema)) for key, schema in schemas.items()}

    @classmethod
    def load(cls, folder: Path) -> "CustomKinds":
        """Every CustomResourceDefinition under `folder`, as JSON files with one storage version each."""
        schemas = {}
        for path in sorted(folder.rglob("*.json")):
            definition = json.loads(path.read_text(encoding="utf-8"))["spec"]
            for version in definition["versions"]:
                key = (f"{definition['group']}/{version['name']}", definition["names"]["kind"])
                schemas[key] = version["schema"]["openAPIV3Schema"]
        return cls(schemas)

    def __contains__(self, thing: Json) -> bool:
        return (thing["apiVersion"], thing["kind"]) in self._schemas

    def admitted(self, thing: Json) -> Json:
        """A copy of `thing` as the server would store it: nulls dropped, defaults filled in."""
        schema = self._schemas[thing["apiVersion"], thing["kind"]]
        stored = copy.deepcopy(thing)
        _drop_nulls(stored, schema)
        _fill_defaults(stored, schema)
        return stored

    def errors(self, thing: Json, *, old: Json | None = None) -> list[str]:
        """Why the server would refuse `thing` (as an update of `old`, where given); empty when it would admit it."""
        validator = self._validators[thing["apiVersion"], thing["kind"]]
        stored = self.admitted(thing)
        found = [_sentence(error) for error in validator.iter_errors(stored)]
        # The server runs CEL only on what is structurally valid.
        if found:
            return sorted(found)
        schema = self._schemas[thing["apiVersion"], thing["kind"]]
        return list(cel.errors(stored, schema, self.admitted(old) if old else None))

    def cel_rules(self) -> set[str]:
        """The text of every CEL rule in these CRDs."""
        return {rule for schema in self._schemas.values() for rule in cel.rules(schema)}


def json_schema(schema: Json) -> Json:
    """openAPIV3Schema -> JSON Schema 2020-12 that refuses unknown fields (`fieldValidation=Strict`)."""
    return _convert(schema, closed=True, resource=True)


def _convert(schema: Json, *, closed: bool, resource: bool = False) -> Json:
    """`closed`: unknown fields are refused here (not inside anyOf and its kin, which only add conditions)."""
    result: Json = {key: schema[key] for key in _KEPT if key in schema}
    int_or_string = schema.get("x-kubernetes-int-or-string")
    if int_or_string:
        result["type"] = ["integer", "string"]
    elif "type" in schema:
        result["type"] = schema["type"]
    for side, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if schema.get(exclusive):  # a flag in OpenAPI 3.0, a number in JSON Schema
            result[exclusive] = result.pop(side)
    if schema.get("format") in _INT_RANGES and schema.get("type") == "integer":
        low, high = _INT_RANGES[schema["format"]]
        result["minimum"] = max(low, result.get("minimum", low))
        result["maximum"] = min(high, result.get("maximum", high))
    if "properties" in schema:
        result["properties"] = {key: _convert(value, closed=closed) for key, value in schema["properties"].items()}
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = _convert(schema["additionalProperties"], closed=closed)
    elif "additionalProperties" in schema:
        result["additionalProperties"] = schema["additionalProperties"]
    if isinstance(schema.get("items"), dict):
        result["items"] = _convert(schema["items"], closed=closed)
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema and not (int_or_string and word == "anyOf"):
            result[word] = [_convert(item, closed=False) for item in schema[word]]
    if "not" in schema:
        result["not"] = _convert(schema["not"], closed=False)
    if resource or schema.get("x-kubernetes-embedded-resource"):
        result["properties"] = {**_OBJECT_META, **result.get("properties", {})}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if closed and "properties" in result and not open_ended:
        result["additionalProperties"] = False
    if schema.get("nullable") and "type" in result:
        kinds = result["type"] if isinstance(result["type"], list) else [result["type"]]
        result["type"] = [*kinds, "null"]
        if "enum" in result:
            result["enum"] = [*result["enum"], None]
    return result


def _children(value: Any, schema: Json) -> Iterator[tuple[Any, Json]]:
    """(key or index, schema of the child) for each child of `value` that the schema describes."""
    if isinstance(value, dict):
        extra = schema.get("additionalProperties")
        for key in list(value):
            child = schema.get("properties", {}).get(key, extra)
            if isinstance(child, dict):
                yield key, child
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index in range(len(value)):
            yield index, schema["items"]


def _drop_nulls(value: Any, schema: Json) -> None:
    """Remove nulls that the schema does not allow; a null *item* of a list stays and is refused later."""
    for key, child in _children(value, schema):
        if value[key] is None and isinstance(value, dict) and not child.get("nullable"):
            del value[key]
        else:
            _drop_nulls(value[key], child)


def _fill_defaults(value: Any, schema: Json) -> None:
    if isinstance(value, dict):
        for key, child in schema.get("properties", {}).items():
            if key not in value and "default" in child:
                value[key] = copy.deepcopy(child["default"])
    for key, child in _children(value, schema):
        _fill_defaults(value[key], child)


def _sentence(error: ValidationError) -> str:
    path = ".".join(str(part) for part in error.absolute_path) or "(the object)"
    return f"{path}: {error.message[:300]}"
