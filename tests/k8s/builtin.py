"""Strict schemas of Kubernetes' own kinds, and of the few kinds of other projects that k8s/ uses.

The schemas are those of the package kubernetes-validate, read once: its own `validate` parses two megabytes for each
object. What was valid once is not looked at again, so that overlays cost little more than what they change.
"""

import json
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from kubernetes_validate import utils  # type: ignore[import-untyped]
from referencing import Registry, Resource

from tests.k8s.foreign import FOREIGN, strict_errors
from tests.k8s.manifests import name_of

Json = dict[str, Any]


def errors(thing: Json, version: str) -> list[str]:
    """Why a server of this Kubernetes version would refuse `thing`; empty when it would take it.

    Raises KeyError for a kind that neither Kubernetes nor `foreign` knows.
    """
    if thing["kind"] in FOREIGN:
        return [f"{name_of(thing)}: {text}" for text in strict_errors(thing)]
    return list(_errors(json.dumps(thing, sort_keys=True), version))


@cache
def _errors(text: str, version: str) -> tuple[str, ...]:
    thing = json.loads(text)
    found = list(_validator(thing["kind"], thing["apiVersion"], version).iter_errors(thing))
    return tuple(
        f"{name_of(thing)} ({version}): {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for error in found
    )


@cache
def _validator(kind: str, api_version: str, version: str) -> Any:
    group, _, number = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.partition('.')[0] + '-' if group else ''}{number}.json"
    try:
        schema = utils.schema_contents(f"{_folder(version)}/{name}", version)
    except FileNotFoundError:
        raise KeyError(f"no schema of {kind} {api_version}: give it one in tests/k8s/foreign.py") from None
    registry = Resource.from_contents(schema) @ _definitions(version)
    return Draft202012Validator(schema, registry=registry)


@cache
def _definitions(version: str) -> Any:
    return Resource.from_contents(utils.schema_contents(f"{_folder(version)}/_definitions.json", version)) @ Registry()


def _folder(version: str) -> str:
    newest = [known for known in utils.all_versions() if utils.major_minor(known) == version][-1]
    return f"kubernetes-json-schema/v{newest}-local-strict"
