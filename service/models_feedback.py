"""The table of what people said of models' answers: the only place where prompts and answers are kept."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.models import Base, Owned


class Feedback(Owned, Base):
    """One judgement, with what it is about. Never changed; gone when it is withdrawn."""

    __tablename__ = "feedback"
    __table_args__ = (Index("ix_feedback_project", "project", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    created_by: Mapped[str] = mapped_column(String(40))
    """Id of the key."""
    messages: Mapped[list[dict[str, Any]]]
    """The talk up to the answer: [{role, content}]."""
    prompt_hash: Mapped[str] = mapped_column(String(64))
    """SHA-256 of `messages`: judgements of one prompt belong together."""
    rating: Mapped[str | None] = mapped_column(String(4))
    """up or down, of `answer` alone; null: `answer` is better than `rejected`."""
    answer: Mapped[dict[str, Any]]
    """{completion, content, model, deployment, revision, model_version, fingerprint}"""
    rejected: Mapped[dict[str, Any] | None]
    """The same of the other answer."""
    created_at: Mapped[datetime]
