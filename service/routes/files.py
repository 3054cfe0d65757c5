"""OpenAI's files, which are datasets under another name: what one route uploads, the other one lists."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import FileResponse, JSONResponse, Response

from service import datasets
from service.context import CallerDep, ContextDep, IdempotencyKey, bearer
from service.errors import NotFound, UnsupportedType
from service.fine_tuning import dataset_id, file_id, refused
from service.forms import FileBody
from service.idempotency import Answer
from service.intake import take_file
from service.models_data import Dataset
from service.pages import PageQuery, page
from service.schemas import PageOf
from service.schemas_openai import PURPOSE, file_json
from service.schemas_tuning import DeletedOut, FileOut
from service.states import DatasetState

router = APIRouter(prefix="/v1/files", tags=["fine-tuning (OpenAI)"], dependencies=[bearer])

_BYTES = {"schema": {"type": "string", "format": "binary"}}
_CONTENT = {"application/jsonl": _BYTES, "application/gzip": _BYTES}
_PARTS = {"file": {"type": "string", "format": "binary"}, "purpose": {"const": PURPOSE}}
_FORM = {"type": "object", "required": ["file", "purpose"], "properties": _PARTS, "additionalProperties": False}
_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}


class FileQuery(PageQuery):
    """Filters of the list."""

    purpose: str | None = None


@router.post("", responses={200: {"model": FileOut}}, openapi_extra=_BODY)
async def create_file(
    request: Request, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Upload JSON lines for fine-tuning. The same bytes are the same file."""
    file = FileBody(request, fields=("purpose",))
    if not file.form:
        raise UnsupportedType("Send a form (multipart/form-data) with the parts `file` and `purpose`.")

    def named(read: FileBody) -> tuple[str | None, str]:
        purpose = read.fields.get("purpose")
        if purpose != PURPOSE:
            raise refused("purpose", f"must be {PURPOSE}: files serve nothing else here", code="unsupported_purpose")
        return None, read.filename or "rows.jsonl"

    def shown(row: Dataset, new: bool) -> Answer:
        return Answer(status=200, body=file_json(row))

    return await take_file(request, file, context, caller, idempotency_key, named, shown)


@router.get("", responses={200: {"model": PageOf[FileOut]}})
def list_files(request: Request, context: ContextDep, query: Annotated[FileQuery, Query()]) -> Response:
    """Files, newest first."""
    wanted = select(Dataset).where(Dataset.state == DatasetState.READY)
    down = query.order == "desc"
    if query.after is not None:
        after = dataset_id(query.after)
        wanted = wanted.where(Dataset.id < after if down else Dataset.id > after)
    with context.store.read() as session:
        found = session.scalars(wanted.order_by(Dataset.id.desc() if down else Dataset.id).limit(query.size + 1)).all()
    shown = [file_json(row) for row in found] if query.purpose in (None, PURPOSE) else []
    return page(request, shown, query)


@router.get("/{file}", responses={200: {"model": FileOut}})
def get_file(file: str, context: ContextDep) -> Response:
    """One file."""
    with context.store.read() as session:
        return JSONResponse(file_json(_find(session, file)))


@router.get("/{file}/content", response_class=FileResponse, responses={200: {"content": _CONTENT}})
def get_content(file: str, context: ContextDep) -> Response:
    """Its bytes as they were sent."""
    with context.store.read() as session:
        row = _find(session, file)
    path = datasets.file_of(context.settings, row)
    if not path.is_file():
        raise NotFound("The file is no longer in the store.", code="file_missing")
    return FileResponse(path, media_type="application/gzip" if path.suffix == ".gz" else "application/jsonl")


@router.delete("/{file}", responses={200: {"model": DeletedOut}})
def delete_file(file: str, context: ContextDep, caller: CallerDep) -> Response:
    """Delete it, as OpenAI's client does: without If-Match. Refused while something reads it."""
    with context.store.write() as session:
        row = datasets.lock_dataset(session, _find(session, file).id)
        datasets.delete_dataset(session, row, caller, context.clock.now())
    return JSONResponse({"id": file_id(row.id), "object": "file", "deleted": True})


def _find(session: Session, file: str) -> Dataset:
    row = session.get(Dataset, dataset_id(file))
    if row is None or row.state == DatasetState.DELETED:
        raise NotFound(f"There is no file {file}.", code="file_not_found", errors=[("/file_id", "is unknown")])
    return row
