"""datasets, who reads them, OpenAI-shaped fine-tuning jobs: new tables alone"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_LIVE = "state <> 'DELETED'"


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=True),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("format", sa.String(length=16), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("unpacked_bytes", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("columns", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("validation", sa.String(length=16), nullable=False),
        sa.Column("validation_request", sa.JSON(), nullable=True),
        sa.Column("validation_message", sa.Text(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("event_seq", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("validated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    for index, column in (("uq_datasets_live_sha256", "sha256"), ("uq_datasets_live_name", "name")):
        op.create_index(
            index, "datasets", [column], unique=True, sqlite_where=sa.text(_LIVE), postgresql_where=sa.text(_LIVE)
        )
    op.create_index("ix_datasets_validation", "datasets", ["validation"], unique=False)
    op.create_table(
        "dataset_uses",
        sa.Column("sweep_id", sa.String(length=40), nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.Column("dataset_id", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweeps.id"]),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"]),
        sa.PrimaryKeyConstraint("sweep_id", "role"),
    )
    op.create_index("ix_dataset_uses_dataset", "dataset_uses", ["dataset_id"], unique=False)
    op.create_table(
        "fine_tuning_jobs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("sweep_id", sa.String(length=40), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("training_file", sa.String(length=40), nullable=False),
        sa.Column("validation_file", sa.String(length=40), nullable=True),
        sa.Column("method", sa.String(length=32), nullable=False),
        sa.Column("hyperparameters", sa.JSON(), nullable=False),
        sa.Column("suffix", sa.String(length=40), nullable=True),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("fine_tuned_model", sa.String(length=63), nullable=False),
        sa.Column("deployment_id", sa.String(length=40), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweeps.id"]),
        sa.ForeignKeyConstraint(["training_file"], ["datasets.id"]),
        sa.ForeignKeyConstraint(["validation_file"], ["datasets.id"]),
        sa.ForeignKeyConstraint(["deployment_id"], ["deployments.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("sweep_id"),
        sa.UniqueConstraint("fine_tuned_model"),
    )
    op.create_index("ix_fine_tuning_jobs_state", "fine_tuning_jobs", ["state"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_fine_tuning_jobs_state", table_name="fine_tuning_jobs")
    op.drop_table("fine_tuning_jobs")
    op.drop_index("ix_dataset_uses_dataset", table_name="dataset_uses")
    op.drop_table("dataset_uses")
    op.drop_index("ix_datasets_validation", table_name="datasets")
    op.drop_index("uq_datasets_live_name", table_name="datasets")
    op.drop_index("uq_datasets_live_sha256", table_name="datasets")
    op.drop_table("datasets")
