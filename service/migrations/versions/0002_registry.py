"""registry, promotions, deployments that follow an alias, scopes of keys: new tables, and columns that may be null"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_LIVE = "state IN ('PENDING', 'RUNNING', 'AWAITING_APPROVAL')"


def upgrade() -> None:
    op.create_table(
        "registry_models",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("versions", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("event_seq", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "model_versions",
        sa.Column("model_id", sa.String(length=40), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("sweep_id", sa.String(length=40), nullable=False),
        sa.Column("checkpoint", sa.String(length=63), nullable=False),
        sa.Column("model_path", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["registry_models.id"]),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweeps.id"]),
        sa.PrimaryKeyConstraint("model_id", "n"),
    )
    unique = ["model_id", "sweep_id", "checkpoint"]
    op.create_index("uq_model_versions_checkpoint", "model_versions", unique, unique=True)
    op.create_table(
        "model_aliases",
        sa.Column("model_id", sa.String(length=40), nullable=False),
        sa.Column("alias", sa.String(length=63), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("moved_by", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["registry_models.id"]),
        sa.PrimaryKeyConstraint("model_id", "alias"),
    )
    op.create_table(
        "promotions",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.String(length=40), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("champion", sa.Integer(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("approval", sa.String(length=8), nullable=False),
        sa.Column("gate", sa.JSON(), nullable=False),
        sa.Column("desired", sa.String(length=8), nullable=False),
        sa.Column("actor", sa.String(length=40), nullable=False),
        sa.Column("evaluation_id", sa.String(length=40), nullable=True),
        sa.Column("evidence", sa.JSON(), nullable=True),
        sa.Column("decision", sa.JSON(), nullable=True),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("reason", sa.String(length=40), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("event_seq", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["registry_models.id"]),
        sa.ForeignKeyConstraint(["evaluation_id"], ["sweeps.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_promotions_state", "promotions", ["state"], unique=False)
    op.create_index(
        "uq_promotions_live",
        "promotions",
        ["model_id"],
        unique=True,
        sqlite_where=sa.text(_LIVE),
        postgresql_where=sa.text(_LIVE),
    )
    op.add_column("deployments", sa.Column("follows", sa.String(length=127), nullable=True))
    op.add_column("deployments", sa.Column("model_version", sa.Integer(), nullable=True))
    op.add_column("deployments", sa.Column("ready_revision", sa.Integer(), nullable=True))
    op.add_column("api_keys", sa.Column("scopes", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "scopes")
    for column in ("ready_revision", "model_version", "follows"):
        op.drop_column("deployments", column)
    op.drop_index("uq_promotions_live", table_name="promotions")
    op.drop_index("ix_promotions_state", table_name="promotions")
    op.drop_table("promotions")
    op.drop_table("model_aliases")
    op.drop_index("uq_model_versions_checkpoint", table_name="model_versions")
    op.drop_table("model_versions")
    op.drop_table("registry_models")
