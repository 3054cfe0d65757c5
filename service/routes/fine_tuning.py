"""OpenAI's fine-tuning jobs: each is a run or a small sweep, whose winner is deployed under the job's name."""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from service import datasets, events, rows
from service.auth import Caller
from service.context import CallerDep, ContextDep, IdempotencyKey, bearer
from service.errors import BadRequest, NotFound, illegal_transition
from service.fine_tuning import Request as TuningRequest
from service.fine_tuning import file_named, refused, tuning
from service.idempotency import Answer
from service.ids import dashed_id
from service.models import Deployment, Sweep, Trial
from service.models_data import Dataset, FineTuningJob
from service.pages import MAX_LIMIT
from service.quotas import check_quota
from service.schemas import Json
from service.schemas_openai import JobIn, checkpoint_json, job_json, tuning_event_json
from service.schemas_tuning import CURSORS, JobCheckpointOut, JobEventOut, JobOut, ListOf
from service.states import DEPLOYMENT_MOVES, State, TuningState, Validation, allowed_verbs
from sweeps.defaults import PRACTICE

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning (OpenAI)"], dependencies=[bearer])

_DEFAULT_TYPE = "supervised"
_EVENT_ID, _CHECKPOINT_ID = r"^ftevent-[0-9]{1,15}$", r"^ftckpt-trl_[0-9]{4,9}$"
_FILTER: Json = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "description": "Pairs that a job has: metadata[key]=value.",
    "schema": {
        "type": "object",
        "propertyNames": {"pattern": r'^[^"\\\x00-\x1f]{1,64}$'},
        "additionalProperties": {"type": "string"},
    },
}
ONE_JOB: dict[int | str, dict[str, Any]] = {200: {"model": JobOut}}
REFUSED: dict[int | str, dict[str, Any]] = {400: {}}
_METADATA = re.compile(r'metadata\[([^"\\\x00-\x1f]{1,64})\]')


def _after(form: str) -> Json:
    """Parameters of a list whose cursor has that form."""
    limit, after = CURSORS
    return {"parameters": [limit, {**after, "schema": {"type": "string", "pattern": form}}]}


@router.post("", responses=ONE_JOB)
def create_job(
    request: Request, body: JobIn, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Ask for a fine-tuned model. Every field is honoured, or refused by name."""
    kind, given = _method(body)
    if body.integrations:
        raise refused("integrations", "is not supported", code="unsupported_field")

    def effect(session: Session, now: datetime) -> Answer:
        name = dashed_id("ftjob", now)
        training = file_named(session, body.training_file, "training_file")
        held_out = None
        if body.validation_file is not None:
            held_out = file_named(session, body.validation_file, "validation_file")
        asked = TuningRequest(
            model=body.model,
            training_file=training,
            validation_file=held_out,
            type=kind,
            given=given,
            seed=body.seed or 0,
        )
        settled = tuning(session, context.settings, name, asked)
        check_quota(session, context.settings, caller.project, settled.order)
        sweep = rows.create_sweep(session, settled.order, caller, now, validating=True)
        _have_looked_at(session, training, held_out, settled.order.plan["base_model"], caller, now)
        job = FineTuningJob(
            id=name,
            project=caller.project,
            sweep_id=sweep.id,
            created_by=caller.key_id,
            model=body.model,
            training_file=training.id,
            validation_file=None if held_out is None else held_out.id,
            method=kind,
            hyperparameters=settled.hyperparameters,
            suffix=body.suffix,
            seed=asked.seed,
            labels=body.metadata or {},
            fine_tuned_model="-".join(["ft", *([body.suffix] if body.suffix else []), name[-8:]]),
            state=TuningState.TRAINING,
            created_at=now,
        )
        session.add(job)
        session.flush()
        return Answer(status=200, body=job_json(job, sweep))

    response = context.posts.run(request.url.path, body.model_dump(mode="json"), idempotency_key, caller, effect)
    context.reconciler.wake()
    return response


@router.get("", responses={200: {"model": ListOf[JobOut]}}, openapi_extra={"parameters": [*CURSORS, _FILTER]})
def list_jobs(request: Request, context: ContextDep) -> Response:
    """Jobs, newest first; `metadata[key]=value` filters."""
    limit, after, wished = _page(request, metadata=True)
    wanted = select(FineTuningJob, Sweep).join(Sweep, Sweep.id == FineTuningJob.sweep_id)
    if after is not None:
        wanted = wanted.where(FineTuningJob.id < after)
    for key, value in wished.items():
        wanted = wanted.where(FineTuningJob.labels[key].as_string() == value)
    with context.store.read() as session:
        found = session.execute(wanted.order_by(FineTuningJob.id.desc()).limit(limit + 1)).all()
    return _listed([job_json(job, sweep) for job, sweep in found], limit)


@router.get("/{job_id}", responses=ONE_JOB)
def get_job(job_id: str, context: ContextDep) -> Response:
    """One job."""
    with context.store.read() as session:
        return JSONResponse(job_json(*_find(session, job_id)))


@router.post("/{job_id}/cancel", responses=ONE_JOB)
def cancel_job(
    request: Request, job_id: str, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Ask for its end. `cancelled` when Ray has confirmed it."""

    def effect(session: Session, now: datetime) -> Answer:
        _find(session, job_id)
        job = session.scalar(select(FineTuningJob).where(FineTuningJob.id == job_id).with_for_update())
        assert job is not None
        if job.state == TuningState.DEPLOYING:
            _stop_deploying(session, job, caller, now)
        elif job.state != TuningState.TRAINING:
            raise illegal_transition("fine-tuning job", job.state, "cancel", [])
        else:
            sweep = session.get_one(Sweep, job.sweep_id)
            if sweep.state == State.SUCCEEDED:  # and its winner is not on its way yet
                job.state, job.ended_at = TuningState.CANCELLED, now
            else:
                rows.want_cancel(session, sweep.kind, sweep.id, caller, now)
        session.flush()
        return Answer(status=200, body=job_json(job, session.get_one(Sweep, job.sweep_id)))

    response = context.posts.run(request.url.path, None, idempotency_key, caller, effect)
    context.reconciler.wake()
    return response


@router.post("/{job_id}/pause", responses=REFUSED)
def pause_job(job_id: str) -> Response:
    """Not honoured: refused by name."""
    raise _elsewhere(job_id, "pause")


@router.post("/{job_id}/resume", responses=REFUSED)
def resume_job(job_id: str) -> Response:
    """Not honoured: refused by name."""
    raise _elsewhere(job_id, "resume")


@router.get("/{job_id}/events", responses={200: {"model": ListOf[JobEventOut]}}, openapi_extra=_after(_EVENT_ID))
def list_job_events(request: Request, job_id: str, context: ContextDep) -> Response:
    """What happened, newest first."""
    limit, after, _ = _page(request)
    with context.store.read() as session:
        _, sweep = _find(session, job_id)
        found = events.read(session, sweep.id, after=_seq(after), limit=limit + 1, order="desc")
    return _listed([tuning_event_json(event) for event in found], limit)


@router.get(
    "/{job_id}/checkpoints",
    responses={200: {"model": ListOf[JobCheckpointOut]}},
    openapi_extra=_after(_CHECKPOINT_ID),
)
def list_checkpoints(request: Request, job_id: str, context: ContextDep) -> Response:
    """Checkpoints that the trials left, newest first."""
    limit, after, _ = _page(request)
    with context.store.read() as session:
        job, sweep = _find(session, job_id)
        wanted = select(Trial).where(Trial.sweep_id == sweep.id, Trial.checkpoint.is_not(None))
        if after is not None:
            if not re.fullmatch(_CHECKPOINT_ID, after):
                raise refused("after", "must be the id of a checkpoint")
            wanted = wanted.where(Trial.number < int(after.removeprefix("ftckpt-trl_")))
        found = session.scalars(wanted.order_by(Trial.number.desc()).limit(limit + 1)).all()
    return _listed([checkpoint_json(job, sweep, trial) for trial in found], limit)


def _method(body: JobIn) -> tuple[str, Mapping[str, Any]]:
    """(type, hyperparameters). Raises BadRequest (400)."""
    if body.method is None:
        return _DEFAULT_TYPE, body.hyperparameters or {}
    if body.hyperparameters is not None:
        raise refused("hyperparameters", "belong into method.<type>.hyperparameters, where method is given")
    kind = body.method.get("type")
    if not isinstance(kind, str):
        raise refused("method.type", "is required: e.g. simpo")
    if unknown := sorted(set(body.method) - {"type", kind}):
        raise refused(f"method.{unknown[0]}", f"is not {kind}, the type", code="unsupported_field")
    inner = body.method.get(kind) or {}
    if not isinstance(inner, dict):
        raise refused(f"method.{kind}", "must be an object with hyperparameters")
    if unknown := sorted(set(inner) - {"hyperparameters"}):
        raise refused(f"method.{kind}.{unknown[0]}", "is not supported", code="unsupported_field")
    given = inner.get("hyperparameters") or {}
    if not isinstance(given, dict):
        raise refused(f"method.{kind}.hyperparameters", "must be an object")
    return kind, given


def _have_looked_at(
    session: Session, training: Dataset, held_out: Dataset | None, base: str, caller: Caller, now: datetime
) -> None:
    """Ask for the doctor's report, unless the same look was taken already."""
    local = base if base != PRACTICE and base.startswith("/") else None
    wanted = {"eval": None if held_out is None else held_out.id, "base_model": local}
    known = training.validation not in (Validation.NONE, Validation.FAILED)
    if not known or training.validation_request != wanted:
        datasets.want_validation(session, training.id, wanted, caller, now)


def _stop_deploying(session: Session, job: FineTuningJob, caller: Caller, now: datetime) -> None:
    found = session.scalar(select(Deployment).where(Deployment.id == job.deployment_id).with_for_update())
    if found is not None and found.desired != "DELETE" and "delete" in allowed_verbs(found.state, DEPLOYMENT_MOVES):
        rows.want_deletion(session, found, caller.key_id, now)
    job.state, job.ended_at = TuningState.CANCELLED, now


def _elsewhere(job_id: str, verb: str) -> BadRequest:
    text = f"{verb} of {job_id} is not supported here: POST /v1/sweeps/{{id}}/{verb}, or /v1/runs, of its sweep."
    return BadRequest(text, code="unsupported_operation")


def _find(session: Session, job_id: str) -> tuple[FineTuningJob, Sweep]:
    job = session.get(FineTuningJob, job_id)
    if job is None:
        raise NotFound(f"There is no fine-tuning job {job_id}.", errors=[("/fine_tuning_job_id", "is unknown")])
    return job, session.get_one(Sweep, job.sweep_id)


def _page(request: Request, *, metadata: bool = False) -> tuple[int, str | None, dict[str, str]]:
    """(limit, after, metadata) of a list. Raises BadRequest (400) for what is not understood."""
    limit, after, wished = 20, None, {}
    given = request.query_params.multi_items()
    if twice := [key for key, count in Counter(key for key, _ in given).items() if count > 1]:
        raise refused(twice[0], "is given twice")
    for key, value in given:
        named = _METADATA.fullmatch(key) if metadata else None
        if named is not None:
            wished[named[1]] = value
        elif key == "after":
            after = value
        elif key == "limit" and value.isdecimal() and int(value[:9]) > 0:
            limit = min(int(value[:9]), MAX_LIMIT)
        else:
            raise refused(key, f"{value[:40]!r} is not understood here", code="unsupported_field")
    return limit, after, wished


def _seq(after: str | None) -> int:
    if after is None:
        return 0
    if not re.fullmatch(_EVENT_ID, after):
        raise refused("after", "must be the id of an event")
    return int(after.removeprefix("ftevent-"))


def _listed(items: list[Json], limit: int) -> Response:
    body = {"object": "list", "data": items[:limit], "has_more": len(items) > limit}
    return JSONResponse(body)
