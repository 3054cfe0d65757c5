"""What the API shows and takes of datasets. Requests refuse unknown fields."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from service.clock import rfc3339
from service.models_data import Dataset
from service.schemas import Json


class ValidateIn(BaseModel):
    """What the doctor looks at beside the rows."""

    model_config = ConfigDict(extra="forbid")

    eval: str | None = None
    """Id of a dataset: is any prompt of it trained on?"""
    base_model: str | None = None
    """Directory of a model on the service's machine: tokens are looked at as its training sees them."""


class ValidationOut(BaseModel):
    """How far the doctor is."""

    state: str
    """NONE, PENDING, RUNNING, SUCCEEDED (there is a report) or FAILED (none could be made)."""
    message: str
    ok: bool | None
    """Of a report: whether nothing in it is an error."""
    validated_at: str | None


class DatasetOut(BaseModel):
    """An uploaded dataset. Its path stays inside: specs name it by its id."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: str | None
    filename: str
    state: str
    """READY or DELETED"""
    sha256: str
    format: str
    """jsonl or jsonl.gz"""
    bytes: int
    unpacked_bytes: int
    rows: int
    columns: list[str]
    validation: ValidationOut
    created_at: str
    expire_time: str | None
    """Of a DELETED one: when its file goes."""


class ReportOut(BaseModel):
    """What the doctor saw."""

    object: Literal["dataset.report"] = "dataset.report"
    dataset: str
    request: Json
    """{eval, base_model}"""
    validated_at: str
    report: Json
    """ok, rows, pairs, counts, findings (each with its remedy), lengths, truncation, tokens."""


class PreviewOut(BaseModel):
    """The first rows as they stand in the file."""

    object: Literal["list"] = "list"
    dataset: str
    data: list[Json]
    """[{line, values}]"""
    truncated: bool
    """Fewer rows than asked for: they are long."""


def dataset_json(row: Dataset) -> Json:
    """One dataset."""
    checked = ValidationOut(
        state=row.validation,
        message=row.validation_message,
        ok=bool(row.report["ok"]) if row.report else None,
        validated_at=rfc3339(row.validated_at) if row.validated_at else None,
    )
    return DatasetOut(
        id=row.id,
        name=row.name,
        filename=row.filename,
        state=row.state,
        sha256=row.sha256,
        format=row.format,
        bytes=row.bytes,
        unpacked_bytes=row.unpacked_bytes,
        rows=row.rows,
        columns=row.columns,
        validation=checked,
        created_at=rfc3339(row.created_at),
        expire_time=rfc3339(row.expire_time) if row.expire_time else None,
    ).model_dump(mode="json")


def report_json(row: Dataset) -> Json:
    """The report of a dataset that has one."""
    assert row.report is not None and row.validated_at is not None
    request: dict[str, Any] = row.validation_request or {}
    return ReportOut(
        dataset=row.id, request=request, validated_at=rfc3339(row.validated_at), report=row.report
    ).model_dump(mode="json")
