"""The table of what keys and projects asked models for lately, where a limit holds: shared by the API's processes."""

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.models import Base, Owned


class InferenceUse(Owned, Base):
    """What one subject took in one span of time. Rows of spans that no limit looks back to are removed."""

    __tablename__ = "inference_use"
    __table_args__ = (Index("ix_inference_use_start", "span_s", "start"),)

    subject: Mapped[str] = mapped_column(String(40), primary_key=True)
    """Id of a key or of a project."""
    span_s: Mapped[int] = mapped_column(primary_key=True)
    """60 or 86400"""
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """Unix time; a multiple of the span."""
    requests: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)
    """Read and written."""
