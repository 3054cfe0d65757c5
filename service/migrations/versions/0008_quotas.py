"""quotas of projects, what counts against them, and the priority of sweeps

Only expands. Sweeps of before take one place each, at normal priority.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_SWEEP_COLUMNS = ("priority", "slots", "hours_asked")


def upgrade() -> None:
    op.add_column("sweeps", sa.Column("priority", sa.Integer(), server_default="0", nullable=False))
    op.add_column("sweeps", sa.Column("slots", sa.Integer(), server_default="1", nullable=False))
    op.add_column("sweeps", sa.Column("hours_asked", sa.Float(precision=53), nullable=True))
    op.create_table(
        "quotas",
        sa.Column("project", sa.String(length=40), nullable=False),
        sa.Column("concurrent_sweeps", sa.Integer(), nullable=True),
        sa.Column("concurrent_trials", sa.Integer(), nullable=True),
        sa.Column("accelerator_hours", sa.Float(precision=53), nullable=True),
        sa.Column("period", sa.String(length=8), nullable=True),
        sa.Column("updated_by", sa.String(length=40), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project"),
    )
    op.create_table(
        "usage",
        sa.Column("sweep_id", sa.String(length=40), nullable=False),
        sa.Column("month", sa.String(length=7), nullable=False),
        sa.Column("project", sa.String(length=40), server_default="default", nullable=False),
        sa.Column("seconds", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweeps.id"]),
        sa.PrimaryKeyConstraint("sweep_id", "month"),
    )
    op.create_index("ix_usage_project", "usage", ["project", "month"], unique=False)
    op.create_table(
        "usage_slots",
        sa.Column("sweep_id", sa.String(length=40), nullable=False),
        sa.Column("slot", sa.String(length=80), nullable=False),
        sa.Column("project", sa.String(length=40), server_default="default", nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("workers", sa.Integer(), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweeps.id"]),
        sa.PrimaryKeyConstraint("sweep_id", "slot"),
    )


def downgrade() -> None:
    op.drop_table("usage_slots")
    op.drop_index("ix_usage_project", table_name="usage")
    op.drop_table("usage")
    op.drop_table("quotas")
    for name in _SWEEP_COLUMNS:
        op.drop_column("sweeps", name)
