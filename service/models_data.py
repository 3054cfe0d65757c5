"""The tables of people's data: datasets, which sweeps read them, and OpenAI-shaped fine-tuning jobs on top."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from service.models import Base, Owned


class Dataset(Owned, Base):
    """Preference rows that somebody uploaded. The file lies under the store and never changes."""

    __tablename__ = "datasets"
    __table_args__ = (
        # Within a project the same bytes are the same dataset, until it is deleted.
        Index(
            "uq_datasets_live_sha256",
            "project",
            "sha256",
            unique=True,
            sqlite_where=text("state <> 'DELETED'"),
            postgresql_where=text("state <> 'DELETED'"),
        ),
        Index(
            "uq_datasets_live_name",
            "project",
            "name",
            unique=True,
            sqlite_where=text("state <> 'DELETED'"),
            postgresql_where=text("state <> 'DELETED'"),
        ),
        Index("ix_datasets_validation", "validation"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str | None] = mapped_column(String(63))
    """Chosen by a person; null: known by its id alone."""
    filename: Mapped[str]
    """As sent, for people to recognise; no path is made of it."""
    created_by: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))
    """Of the bytes as sent, which are the bytes as stored."""
    format: Mapped[str] = mapped_column(String(16))
    """jsonl or jsonl.gz"""
    bytes: Mapped[int] = mapped_column(BigInteger)
    unpacked_bytes: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int]
    """Lines that are not blank."""
    columns: Mapped[list[str]]
    """Keys of the first rows."""
    state: Mapped[str] = mapped_column(String(16))
    """READY or DELETED"""
    validation: Mapped[str] = mapped_column(String(16))
    """NONE, PENDING, RUNNING, SUCCEEDED (there is a report) or FAILED (none could be made)."""
    validation_request: Mapped[dict[str, Any] | None]
    """{eval, base_model} of the newest wish."""
    validation_message: Mapped[str] = mapped_column(default="")
    report: Mapped[dict[str, Any] | None]
    """The doctor's newest."""
    version: Mapped[int] = mapped_column()
    event_seq: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    validated_at: Mapped[datetime | None]
    expire_time: Mapped[datetime | None]
    """Of a DELETED one: when its file goes."""

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's own form)


class DatasetUse(Base):
    """A sweep, run or evaluation that reads a dataset."""

    __tablename__ = "dataset_uses"
    __table_args__ = (Index("ix_dataset_uses_dataset", "dataset_id"),)

    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(8), primary_key=True)
    """train or eval"""
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))


class FineTuningJob(Owned, Base):
    """What the OpenAI-shaped route was asked for, around the sweep or run that does it."""

    __tablename__ = "fine_tuning_jobs"
    __table_args__ = (Index("ix_fine_tuning_jobs_state", "state"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"), unique=True)
    created_by: Mapped[str]
    model: Mapped[str]
    """As asked for."""
    training_file: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    validation_file: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    method: Mapped[str] = mapped_column(String(32))
    """`type`, as asked for."""
    hyperparameters: Mapped[dict[str, Any]]
    """Name -> value or auto, defaults filled in."""
    suffix: Mapped[str | None] = mapped_column(String(40))
    seed: Mapped[int]
    labels: Mapped[dict[str, Any]] = mapped_column("metadata")
    fine_tuned_model: Mapped[str] = mapped_column(String(63), unique=True)
    """Name of the deployment that its winner gets."""
    deployment_id: Mapped[str | None] = mapped_column(ForeignKey("deployments.id"))
    state: Mapped[str] = mapped_column(String(16))
    """TRAINING, DEPLOYING, SUCCEEDED, FAILED or CANCELLED"""
    error: Mapped[dict[str, Any] | None]
    """{code, message, param} of a FAILED one."""
    version: Mapped[int] = mapped_column()
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's own form)
