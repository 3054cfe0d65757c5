"""Datasets: rows that people upload, looked at by the doctor, named by their ids in specs."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from service import datasets
from service.context import CallerDep, ContextDep, IdempotencyKey, bearer
from service.errors import NotFound, invalid
from service.forms import PLAIN_TYPES, FileBody
from service.idempotency import Answer
from service.intake import take_file
from service.models_data import Dataset
from service.orders import source_fault
from service.pages import PageQuery, check_if_match, etag, page, single
from service.reach import check_reach
from service.routes.sweeps import PROBLEMS
from service.schemas import NAME, PageOf
from service.schemas_data import DatasetOut, PreviewOut, ReportOut, ValidateIn, dataset_json, report_json
from service.settings import Settings
from service.states import DatasetState

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], dependencies=[bearer], responses=PROBLEMS)

_MAX_PREVIEW = 100
_PREVIEW_BYTES = 1 << 20
_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": _FILE}, "additionalProperties": False}
UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            **{kind: {"schema": _FILE} for kind in PLAIN_TYPES},
        },
    }
}
"""How an upload looks in the OpenAPI document: its body is read as a stream."""


UPLOADED: dict[int | str, dict[str, Any]] = {
    201: {"model": DatasetOut, "description": "Stored"},
    200: {"model": DatasetOut, "description": "The dataset that holds the same bytes already"},
}


class UploadQuery(BaseModel):
    """Beside the file."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=NAME)] | None = None
    """What people call it: unique among those that are not deleted."""
    filename: str | None = None
    """For people to recognise it; a form's own is taken otherwise."""


class DatasetQuery(PageQuery):
    """Filters of the list. Deleted ones are shown only when asked for by state."""

    state: DatasetState = DatasetState.READY
    name: str | None = None
    sha256: str | None = None


class PreviewQuery(BaseModel):
    """How much of it."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1)] = 5
    """Rows; above 100 it is lowered to 100."""


@router.post("", status_code=201, responses=UPLOADED, openapi_extra=UPLOAD_BODY)
async def create_dataset(
    request: Request,
    context: ContextDep,
    caller: CallerDep,
    query: Annotated[UploadQuery, Query()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Upload rows: JSON lines, plain or gzip. 201, or 200 with the dataset that holds the same bytes already."""
    file = FileBody(request, fields=())

    def named(read: FileBody) -> tuple[str | None, str]:
        return query.name, query.filename or read.filename or "rows.jsonl"

    def shown(row: Dataset, new: bool) -> Answer:
        headers = {"location": f"{request.url.path.rstrip('/')}/{row.id}", "etag": etag(row.version)}
        return Answer(status=201 if new else 200, body=dataset_json(row), headers=headers)

    return await take_file(request, file, context, caller, idempotency_key, named, shown)


@router.get("", responses={200: {"model": PageOf[DatasetOut]}})
def list_datasets(request: Request, context: ContextDep, query: Annotated[DatasetQuery, Query()]) -> Response:
    """Datasets, newest first."""
    wanted = select(Dataset).where(Dataset.state == query.state)
    for column, value in ((Dataset.name, query.name), (Dataset.sha256, query.sha256)):
        if value is not None:
            wanted = wanted.where(column == value)
    down = query.order == "desc"
    if query.after is not None:
        wanted = wanted.where(Dataset.id < query.after if down else Dataset.id > query.after)
    with context.store.read() as session:
        found = session.scalars(wanted.order_by(Dataset.id.desc() if down else Dataset.id).limit(query.size + 1)).all()
    return page(request, [dataset_json(row) for row in found], query)


@router.get("/{dataset_id}", responses={200: {"model": DatasetOut}})
def get_dataset(request: Request, dataset_id: str, context: ContextDep) -> Response:
    """One dataset. A deleted one is a 404 `dataset_deleted`; the list has it, by its state."""
    with context.store.read() as session:
        row = datasets.ready(session, dataset_id)
    return single(request, dataset_json(row), row.version)


@router.get("/{dataset_id}/preview", responses={200: {"model": PreviewOut}})
def preview_dataset(dataset_id: str, context: ContextDep, query: Annotated[PreviewQuery, Query()]) -> Response:
    """Its first rows, as they stand in the file."""
    with context.store.read() as session:
        row = datasets.ready(session, dataset_id)
    limit = min(query.limit, _MAX_PREVIEW, row.rows)
    shown = list(first_rows(datasets.file_of(context.settings, row), limit))
    return JSONResponse(PreviewOut(dataset=row.id, data=shown, truncated=len(shown) < limit).model_dump(mode="json"))


@router.post("/{dataset_id}/validate", status_code=202, responses={202: {"model": DatasetOut}})
def validate_dataset(
    request: Request,
    dataset_id: str,
    context: ContextDep,
    caller: CallerDep,
    body: ValidateIn | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Ask for the doctor's report. `validation.state` says when it is there."""
    wanted = (body or ValidateIn()).model_dump(mode="json")

    def effect(session: Session, now: datetime) -> Answer:
        _check(session, context.settings, dataset_id, wanted)
        row = datasets.want_validation(session, dataset_id, wanted, caller, now)
        session.flush()
        return Answer(status=202, body=dataset_json(row), headers={"etag": etag(row.version)})

    response = context.posts.run(request.url.path, wanted, idempotency_key, caller, effect)
    context.reconciler.wake()
    return response


@router.get("/{dataset_id}/report", responses={200: {"model": ReportOut}})
def get_report(request: Request, dataset_id: str, context: ContextDep) -> Response:
    """The doctor's newest report."""
    with context.store.read() as session:
        row = datasets.ready(session, dataset_id)
    if row.report is None:
        detail = f"There is no report on {dataset_id} yet: POST /v1/datasets/{dataset_id}/validate asks for one."
        raise NotFound(detail, code="no_report")
    return single(request, report_json(row), row.version)


@router.delete("/{dataset_id}", responses={200: {"model": DatasetOut}})
def delete_dataset(request: Request, dataset_id: str, context: ContextDep, caller: CallerDep) -> Response:
    """Delete it, guarded by If-Match; refused while something that is not over reads it. Its file stays for a day."""
    with context.store.write() as session:
        row = datasets.lock_dataset(session, dataset_id)
        check_if_match(request, row.version)
        datasets.delete_dataset(session, row, caller, context.clock.now())
    return JSONResponse(dataset_json(row), 200, {"etag": etag(row.version)})


def first_rows(path: Path, limit: int) -> Iterator[dict[str, Any]]:
    """At most so many rows of a file, and no more than a mebibyte of them, but one at least."""
    taken = 0
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            taken += len(text)
            if limit <= 0 or (taken > _PREVIEW_BYTES and taken > len(text)):
                return
            limit -= 1
            yield {"line": number, "values": json.loads(text)}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            yield lines
    except FileNotFoundError:
        raise NotFound("The dataset's file is no longer in the store.", code="file_missing") from None


def _check(session: Session, settings: Settings, dataset_id: str, wanted: dict[str, Any]) -> None:
    datasets.ready(session, dataset_id)
    beside = session.get(Dataset, wanted["eval"]) if wanted["eval"] is not None else None
    if wanted["eval"] is not None and (beside is None or beside.state == DatasetState.DELETED):
        raise invalid([("/eval", f"there is no dataset {wanted['eval']}")])
    check_reach(session, settings, wanted)
    model = wanted["base_model"]
    if model is None:
        return
    if not Path(model).is_absolute():
        raise invalid([("/base_model", f"{model!r} is no absolute path: give a model's directory on this machine")])
    if fault := source_fault(model, "model"):
        raise invalid([("/base_model", fault)])
