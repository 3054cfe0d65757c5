"""What people said of answers: kept with what it is about, and made into pairs that the next sweep trains on."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import product
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.auth import Caller
from service.errors import NotFound, invalid
from service.ids import new_id
from service.models import Deployment
from service.models_feedback import Feedback
from service.schemas_feedback import AnswerIn, FeedbackIn
from service.scopes import allows

_MOST_OF_A_PROMPT = 32
"""Thumbs up, and down, of one prompt that are paired: two answers that many people judged are no thousand pairs."""

Json = dict[str, Any]


def keep(session: Session, asked: FeedbackIn, caller: Caller, now: datetime) -> Feedback:
    """Store one judgement. Raises Invalid (422) for a model that was never deployed in the project."""
    messages = [message.model_dump() for message in asked.messages]
    row = Feedback(
        id=new_id("fbk", now),
        project=caller.project,
        created_by=caller.key_id,
        messages=messages,
        prompt_hash=hashlib.sha256(json.dumps(messages).encode()).hexdigest(),
        rating=asked.rating,
        answer=_judged(session, asked.answer, "answer"),
        rejected=None if asked.rejected is None else _judged(session, asked.rejected, "rejected"),
        created_at=now,
    )
    session.add(row)
    session.flush()
    return row


def withdraw(session: Session, feedback_id: str, caller: Caller) -> Feedback:
    """Forget one, with its prompt and answers. Raises NotFound (404); of others' too, unless one administers."""
    row = session.scalar(select(Feedback).where(Feedback.id == feedback_id).with_for_update())
    if row is None or (row.created_by != caller.key_id and not allows(caller.scopes, "admin")):
        raise no_such_feedback(feedback_id)
    session.delete(row)
    session.flush()
    return row


def no_such_feedback(feedback_id: str) -> NotFound:
    """404."""
    return NotFound(f"There is no feedback {feedback_id}.")


def pairs(rows: Iterable[Feedback]) -> Iterator[Json]:
    """Rows of a preference dataset, each pair of answers once: the preferences as they are, and of thumbs for answers
    to the same messages each that went up over each that went down.
    """
    thumbs: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    prompts: dict[str, list[Json]] = {}
    seen: set[tuple[str, str, str]] = set()
    found: list[tuple[str, str, str]] = []
    for row in rows:
        prompts[row.prompt_hash] = row.messages
        if row.rejected is not None:
            found.append((row.prompt_hash, row.answer["content"], row.rejected["content"]))
            continue
        side = thumbs[row.prompt_hash][0 if row.rating == "up" else 1]
        if row.answer["content"] not in side and len(side) < _MOST_OF_A_PROMPT:
            side.append(row.answer["content"])
    found += [(key, *each) for key, (up, down) in thumbs.items() for each in product(up, down)]
    for pair in found:
        key, chosen, rejected = pair
        if pair not in seen and chosen != rejected:
            seen.add(pair)
            yield {"prompt": prompts[key], "chosen": [_said(chosen)], "rejected": [_said(rejected)]}


def _said(content: str) -> Json:
    return {"role": "assistant", "content": content}


def _judged(session: Session, answer: AnswerIn, field: str) -> Json:
    named = select(Deployment).where(Deployment.name == answer.model).order_by(Deployment.id.desc()).limit(1)
    row = session.scalar(named)  # of those with this name, the newest, gone or not
    if row is None:
        raise invalid([(f"/{field}/model", f"there is no deployment {answer.model}, and there was none")])
    versions = {"revision": row.ready_revision or row.revision, "model_version": row.model_version}
    return {**answer.model_dump(), "deployment": row.id, **versions}
