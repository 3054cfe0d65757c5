"""limits of what keys and projects may ask models for, and what they asked for lately: columns, a table"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_LIMITS = ("requests_per_minute", "tokens_per_minute", "tokens_per_day")


def upgrade() -> None:
    for table in ("api_keys", "quotas"):
        for name in _LIMITS:
            op.add_column(table, sa.Column(name, sa.Integer(), nullable=True))
    op.create_table(
        "inference_use",
        sa.Column("subject", sa.String(length=40), nullable=False),
        sa.Column("span_s", sa.Integer(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("project", sa.String(length=40), server_default="default", nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "span_s", "start"),
    )
    op.create_index("ix_inference_use_start", "inference_use", ["span_s", "start"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_inference_use_start", table_name="inference_use")
    op.drop_table("inference_use")
    for table in ("quotas", "api_keys"):
        for name in _LIMITS:
            op.drop_column(table, name)
