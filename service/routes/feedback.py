"""Feedback on answers: sent by those who talk to models, made into a dataset for the next sweep."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from pydantic_core import to_json
from sqlalchemy import Select, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from service import datasets, feedback
from service.context import CallerDep, Context, ContextDep, IdempotencyKey, bearer
from service.errors import invalid
from service.idempotency import Answer
from service.models_feedback import Feedback
from service.pages import PageQuery, digest_tag, etag, page, whole
from service.routes.datasets import UPLOADED
from service.routes.sweeps import PROBLEMS
from service.run_dirs import check_disk
from service.schemas import PageOf
from service.schemas_data import ValidateIn, dataset_json
from service.schemas_feedback import FeedbackDatasetIn, FeedbackIn, FeedbackOut, feedback_json
from service.uploads import Incoming, Received

router = APIRouter(prefix="/v1/feedback", tags=["feedback"], dependencies=[bearer], responses=PROBLEMS)
export = APIRouter(prefix="/v1/datasets", tags=["feedback"], dependencies=[bearer], responses=PROBLEMS)


class FeedbackQuery(PageQuery):
    """Filters of the list."""

    model: Annotated[str, Field(max_length=63)] | None = None
    """Name of the deployment whose answer is judged, or preferred."""


@router.post("", status_code=201, responses={201: {"model": FeedbackOut}})
def send_feedback(
    request: Request, body: FeedbackIn, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """A thumb for an answer, or a preference between two. From now on the service keeps what it is about."""

    def effect(session: Session, now: datetime) -> Answer:
        shown = feedback_json(feedback.keep(session, body, caller, now))
        headers = {"location": f"/v1/feedback/{shown['id']}", "etag": digest_tag(to_json(shown))}
        return Answer(status=201, body=shown, headers=headers)

    return context.posts.run(request.url.path, body.model_dump(mode="json"), idempotency_key, caller, effect)


@router.get("", responses={200: {"model": PageOf[FeedbackOut]}})
def list_feedback(request: Request, context: ContextDep, query: Annotated[FeedbackQuery, Query()]) -> Response:
    """Feedback of the project, newest first."""
    wanted = _of(query.model)
    down = query.order == "desc"
    if query.after is not None:
        wanted = wanted.where(Feedback.id < query.after if down else Feedback.id > query.after)
    with context.store.read() as session:
        wanted = wanted.order_by(Feedback.id.desc() if down else Feedback.id)
        found = session.scalars(wanted.limit(query.size + 1)).all()
    return page(request, [feedback_json(row) for row in found], query)


@router.get("/{feedback_id}", responses={200: {"model": FeedbackOut}})
def get_feedback(request: Request, feedback_id: str, context: ContextDep) -> Response:
    """One judgement."""
    with context.store.read() as session:
        row = session.get(Feedback, feedback_id)
    if row is None:
        raise feedback.no_such_feedback(feedback_id)
    return whole(request, feedback_json(row))


@router.post("/{feedback_id}/withdraw", responses={200: {"model": FeedbackOut}})
def withdraw_feedback(
    request: Request, feedback_id: str, context: ContextDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Take one's own back: prompt and answers are forgotten. Who administers the project may take back anybody's."""

    def effect(session: Session, now: datetime) -> Answer:
        return Answer(status=200, body=feedback_json(feedback.withdraw(session, feedback_id, caller)))

    return context.posts.run(request.url.path, None, idempotency_key, caller, effect)


@export.post("/from_feedback", status_code=201, responses=UPLOADED)
async def dataset_from_feedback(
    request: Request,
    context: ContextDep,
    caller: CallerDep,
    body: FeedbackDatasetIn | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make the project's feedback a dataset of preferences, and ask for the doctor's report on it.

    Of thumbs, those up and those down for the same messages are paired. 200 with the dataset of before where nothing
    came since.
    """
    asked = body or FeedbackDatasetIn()
    check_disk(context.settings, "A dataset cannot be made")
    incoming = await run_in_threadpool(Incoming, context.settings.datasets_dir, context.settings.max_dataset_bytes)
    try:
        received = await run_in_threadpool(_written, context, incoming, asked)

        def effect(session: Session, now: datetime) -> Answer:
            row, new = datasets.create_dataset(
                session, context.settings, received, name=asked.name, filename="feedback.jsonl", caller=caller, now=now
            )
            if new:
                datasets.want_validation(session, row.id, ValidateIn().model_dump(), caller, now)
                session.flush()
            headers = {"location": f"/v1/datasets/{row.id}", "etag": etag(row.version)}
            return Answer(status=201 if new else 200, body=dataset_json(row), headers=headers)

        said = asked.model_dump(mode="json")
        answer = await run_in_threadpool(context.posts.run, request.url.path, said, idempotency_key, caller, effect)
    finally:
        await run_in_threadpool(incoming.discard)
    context.reconciler.wake()
    return answer


def _written(context: Context, incoming: Incoming, asked: FeedbackDatasetIn) -> Received:
    wanted = _of(asked.model)
    if asked.since is not None:
        wanted = wanted.where(Feedback.created_at >= asked.since)
    number = 0
    with context.store.read() as session:
        for pair in feedback.pairs(session.scalars(wanted.order_by(Feedback.id))):
            incoming.feed(to_json(pair) + b"\n")
            number += 1
    if not number:
        text = "there is no pair: preferences, or thumbs up and down for answers to the same messages"
        raise invalid([("", text)])
    return incoming.finish()


def _of(model: str | None) -> Select[Feedback]:
    wanted = select(Feedback)
    return wanted if model is None else wanted.where(Feedback.answer["model"].as_string() == model)
