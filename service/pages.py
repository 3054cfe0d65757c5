"""Lists and single resources over HTTP: cursor pages, ETags."""

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.responses import Response

from service.errors import PreconditionRequired, Stale, invalid

MAX_LIMIT = 200
Json = dict[str, Any]


class PageQuery(BaseModel):
    """What every list understands. Unknown parameters are refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1)] = 20
    """Above 200 it is lowered to 200."""
    after: str | None = None
    """`next` of the page before, or the id of its last item."""
    order: Literal["asc", "desc"] = "desc"

    @property
    def size(self) -> int:
        """Items on a page."""
        return min(self.limit, MAX_LIMIT)


def words_of(known: type[StrEnum]) -> str:
    """The form of a `state=A,B` filter, as a regular expression."""
    word = "|".join(known.__members__)
    return f"^({word})(,({word}))*$"


def states_in(text: str, known: type[StrEnum]) -> list[str]:
    """The states of a `state=A,B` filter. Raises Invalid (422) for a word that is no state."""
    wanted = text.split(",")
    unknown = [word for word in wanted if word not in known.__members__]
    if unknown:
        raise invalid([("/state", f"{', '.join(map(repr, unknown))}: use {', '.join(known.__members__)}")])
    return wanted


def page(request: Request, items: Sequence[Json], query: PageQuery) -> Response:
    """The answer to a list. `items` holds one more than the page when there is a next one."""
    return page_of(request, [(item["id"], to_json(item, inf_nan_mode="null")) for item in items], query)


def page_of(request: Request, items: Sequence[tuple[str, bytes]], query: PageQuery) -> Response:
    """The same of items that are JSON already, each beside its id."""
    shown = items[: query.size]
    has_more = len(items) > query.size
    following = shown[-1][0] if has_more else None
    rest = to_json({"has_more": has_more, "next": following})
    text = b'{"object":"list","data":[' + b",".join(body for _, body in shown) + b"]," + rest[1:]
    headers = {}
    if following is not None:
        again = [(k, v) for k, v in request.query_params.multi_items() if k != "after"]
        headers["link"] = f'<{request.url.path}?{urlencode([*again, ("after", following)])}>; rel="next"'
    return conditional(request, text, digest_tag(text), headers)


def digest_tag(text: bytes) -> str:
    """Strong tag of what has no version: of the answer itself."""
    return f'"{hashlib.sha256(text).hexdigest()[:32]}"'


def whole(request: Request, body: Json) -> Response:
    """The answer to a GET of one resource that has no version."""
    text = to_json(body, inf_nan_mode="null")
    return conditional(request, text, digest_tag(text))


def single(request: Request, body: Json, version: int) -> Response:
    """The answer to a GET of one resource, under its ETag."""
    return conditional(request, to_json(body, inf_nan_mode="null"), etag(version))


def etag(version: int) -> str:
    """Strong tag of a row's version."""
    return f'"{version}"'


def check_if_match(request: Request, version: int) -> None:
    """Guard an edit. Raises PreconditionRequired (428) without If-Match, Stale (412) when it names another version."""
    given = request.headers.get("if-match")
    if given is None:
        raise PreconditionRequired("Send If-Match with the ETag of the resource as you last read it, or If-Match: *.")
    tags = [tag.strip() for tag in given.split(",")]
    if "*" not in tags and etag(version) not in tags:
        raise Stale("The resource has changed since you read it: read it again, then decide again.")


def conditional(request: Request, text: bytes, tag: str, headers: Json | None = None) -> Response:
    """200 with this JSON, or 304 for a poller that has it already."""
    headers = {"etag": tag, **(headers or {})}
    known = [t.strip().removeprefix("W/") for t in request.headers.get("if-none-match", "").split(",")]
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(text, 200, headers, media_type="application/json")
