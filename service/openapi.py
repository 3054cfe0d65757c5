"""The OpenAPI document: what FastAPI knows of the routes, completed with what holds for all of them.

Errors by shape and status, headers, conditional reads and streams follow from a route's path, method and parameters,
so that a route that somebody adds is described like the others. `tests/service/test_contract.py` asks every operation
whether the document is true; `openapi.json` beside this file is the frozen copy (`python -m tests.openapi`).
"""

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from service.errors import OPENAI_PREFIXES
from service.gate import OPEN_PATHS, UPLOADS
from service.openapi_specs import refine
from service.scopes import scope_of

Json = dict[str, Any]

_METHODS = ("get", "post", "put", "patch", "delete")
_PROBLEM, _OPENAI_ERROR = "Problem", "OpenAIError"


class DescribedAPI(FastAPI):
    """An application whose document is complete."""

    def __init__(self, **more: Any) -> None:
        """`more`: of FastAPI's."""
        # No redirects: they would be built from the Host header, that is, from what anybody sends.
        # Operations are named after their functions: that is what generated clients show.
        names: Json = {"title": "simpo", "version": "1", "generate_unique_id_function": lambda route: route.name}
        super().__init__(**names, docs_url=None, redoc_url=None, redirect_slashes=False, **more)

    def openapi(self) -> Json:
        """The document; made once."""
        if not self.openapi_schema:
            self.openapi_schema = complete(super().openapi())
        return self.openapi_schema


def complete(document: Json) -> Json:
    """The document, changed in place."""
    components = document["components"]
    schemas = components["schemas"]
    for leftover in ("HTTPValidationError", "ValidationError"):
        schemas.pop(leftover, None)
    schemas[_OPENAI_ERROR] = _openai_error()
    components["headers"] = dict(_HEADERS)
    refine(schemas)
    for path, method, operation in operations(document):
        if path not in OPEN_PATHS:
            operation["x-scope"] = scope_of(method.upper(), path)
        operation["parameters"] = [*map(_without_null, operation.get("parameters", ())), *_conditional(path, method)]
        if not operation["parameters"]:
            del operation["parameters"]
        _describe_answers(document, path, method, operation)
    for path, method, operation in operations(document):
        if method == "post" and "{" not in path:
            _link(document, path, operation)
    return document


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Json]]:
    """(path, method, operation) of a document, in its order."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method]


def _link(document: Json, path: str, operation: Json) -> None:
    """From what makes a resource to everything that may be done with it."""
    links = {}
    for other, _, following in operations(document):
        place, _, rest = other.removeprefix(f"{path}/{{").partition("}")
        if other.startswith(f"{path}/{{") and "{" not in rest:
            parameters = {place: "$response.body#/id"}
            links[following["operationId"]] = {"operationId": following["operationId"], "parameters": parameters}
    for code, answer in operation["responses"].items():
        if links and code[0] == "2" and _schema_name(answer) != "PlanOut":
            answer["links"] = links


def _describe_answers(document: Json, path: str, method: str, operation: Json) -> None:
    told = {code: answer for code, answer in operation["responses"].items() if code[0] in "123"}
    for answer in told.values():
        answer.setdefault("headers", {}).update(_success_headers(document, path, method, operation, answer))
    if method == "get" and _tagged(path):
        told["304"] = {"description": "Not changed since the ETag in If-None-Match", "headers": _refs("ETag")}
    if any(parameter["name"] == "stream" for parameter in operation.get("parameters", ())):
        text = {"schema": {"description": "Server-sent events; `data` is an item of the list, as JSON."}}
        told["200"]["content"]["text/event-stream"] = text
    shared = document["components"].setdefault("responses", {})
    more = {int(code) for code in operation["responses"] if code.isdecimal() and code not in (*told, "422")}
    for status in sorted(_errors(path, method, operation) | more):
        name = f"{'OpenAI' if path.startswith(OPENAI_PREFIXES) else 'Problem'}{status}"
        shared[name] = _error(path, status)
        told[str(status)] = {"$ref": f"#/components/responses/{name}"}
    for answer in told.values():
        if "$ref" not in answer:
            answer["headers"] = {**answer["headers"], **_refs("x-request-id")}
    operation["responses"] = dict(sorted(told.items()))


def _errors(path: str, method: str, operation: Json) -> set[int]:
    """Statuses of what may go wrong with it."""
    if path in OPEN_PATHS:
        return {431, 503} if path == "/readyz" else {431}
    found = {401, 403, 431, 500, 503}
    parameters = {parameter["name"].lower() for parameter in operation.get("parameters", ())}
    if "{" in path:
        found.add(404)
    if "requestBody" in operation or any(map(_refusable, operation.get("parameters", ()))):
        found.add(400 if path.startswith(OPENAI_PREFIXES) else 422)
    if method != "get":
        found |= {408, 409, 413}
    if path in UPLOADS and method == "post":
        found |= {400, 415}
    if path.startswith(("/v1/chat", "/v1/completions")) or "project" in parameters:
        found.add(404)
    if "if-match" in parameters:
        found |= {412, 428}
    return found


def _refusable(parameter: Json) -> bool:
    """Whether it has a form that a value may lack."""
    if parameter["name"].lower() in ("if-match", "if-none-match"):
        return False  # 412 and 428 speak of these
    return parameter["in"] != "path" or bool(set(parameter["schema"]) - {"type", "title"})


def _success_headers(document: Json, path: str, method: str, operation: Json, answer: Json) -> Json:
    names = []
    if method == "get" and _tagged(path):
        names.append("ETag")
        if _is_page(document, answer):
            names.append("Link")
    if any(parameter["name"].lower() == "idempotency-key" for parameter in operation.get("parameters", ())):
        names.append("Idempotency-Replayed")
    made = any(other.startswith(f"{path}/{{") and "/" not in other[len(path) + 1 :] for other in document["paths"])
    if method == "post" and made and not path.startswith(OPENAI_PREFIXES):
        names += ["ETag", "Location"]
    return _refs(*names)


def _conditional(path: str, method: str) -> list[Json]:
    if method in ("patch", "delete") and not path.startswith(OPENAI_PREFIXES):
        what = "ETag of the resource as last read, or *: what is changed is what was seen."
        return [{"name": "If-Match", "in": "header", "required": True, "description": what, "schema": _ANY_TAG}]
    if method != "get" or not _tagged(path):
        return []
    what = "ETag of what the caller has: 304 when nothing is newer."
    return [{"name": "If-None-Match", "in": "header", "required": False, "description": what, "schema": _ANY_TAG}]


def _tagged(path: str) -> bool:
    return path not in OPEN_PATHS and not path.startswith(OPENAI_PREFIXES) and not path.endswith(_UNTAGGED)


def _is_page(document: Json, answer: Json) -> bool:
    return "next" in document["components"]["schemas"].get(_schema_name(answer), {}).get("properties", {})


def _schema_name(answer: Json) -> str:
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _error(path: str, status: int) -> Json:
    kind, name = "application/problem+json", _PROBLEM
    if path.startswith(OPENAI_PREFIXES):
        kind, name = "application/json", _OPENAI_ERROR
    return {
        "description": HTTPStatus(status).phrase,
        "content": {kind: {"schema": {"$ref": f"#/components/schemas/{name}"}}},
        "headers": _refs(*_ERROR_HEADERS.get(status, ()), "x-request-id"),
    }


def _without_null(parameter: Json) -> Json:
    """A parameter that may be left out cannot be null: there is no way to write that in a URL or a header."""
    schema = parameter["schema"]
    others = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(others) != 1:
        return parameter
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**parameter, "schema": {**others[0], **rest}}


def _refs(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _openai_error() -> Json:
    nullable = {"type": ["string", "null"]}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}, "param": nullable, "code": nullable}
    inner = {"type": "object", "required": list(fields), "properties": fields}
    return {
        "type": "object",
        "description": "Every error of the routes that OpenAI's clients ask.",
        "required": ["error"],
        "properties": {"error": inner},
    }


_UNTAGGED = ("/preview",)
"""Ends of native GETs whose answers carry no ETag."""
_ANY_TAG = {"type": "string"}
_ERROR_HEADERS: Mapping[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",),
    409: ("x-should-retry",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
_HEADERS: Mapping[str, Json] = {
    "ETag": {"description": "Version of the answer, for If-None-Match and If-Match.", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "true: the Idempotency-Key was seen before, and this is the first answer again.",
        "schema": {"type": "string", "const": "true"},
    },
    "Link": {"description": 'URL of the next page, rel="next".', "schema": {"type": "string"}},
    "Location": {"description": "Where the resource is.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait before asking again.", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}},
    "x-request-id": {
        "description": "Names this request in the log. One that the caller sends is kept.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    },
    "x-should-retry": {
        "description": "false: asking again cannot help (OpenAI's client obeys it).",
        "schema": {"type": "string"},
    },
}
