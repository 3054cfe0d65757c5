"""projects, whose everything is; keys that end, rotate and have roles; the audit log.

What there was belongs to the project `default`. Names become unique within a project. Only expands: code of the
revision before goes on in `default`, because every new column is null or has that default.
"""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_JOBS = ("sweeps", "events", "deployments", "fine_tuning_jobs")
_OWNED = (*_JOBS, "datasets", "registry_models", "promotions", "api_keys")
_UNIQUE = (
    ("uq_sweeps_live_name", "sweeps", ["kind", "name"], "state NOT IN ('FAILED', 'CANCELLED')"),
    ("uq_deployments_live_name", "deployments", ["name"], "state <> 'DELETED'"),
    ("uq_datasets_live_sha256", "datasets", ["sha256"], "state <> 'DELETED'"),
    ("uq_datasets_live_name", "datasets", ["name"], "state <> 'DELETED'"),
)
_KEY_COLUMNS: dict[str, Any] = {
    "role": sa.String(length=16),
    "created_by": sa.String(length=40),
    "expires_at": sa.DateTime(timezone=True),
    "last_used_at": sa.DateTime(timezone=True),
    "previous_hash": sa.String(length=64),
    "previous_until": sa.DateTime(timezone=True),
}


def upgrade() -> None:
    projects = op.create_table(
        "projects",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    first = {"id": "default", "name": "default", "created_by": "service", "version": 1}
    op.bulk_insert(projects, [{**first, "created_at": datetime.now(UTC)}])
    op.create_table(
        "audit",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project", sa.String(length=40), nullable=False),
        sa.Column("actor", sa.String(length=40), nullable=False),
        sa.Column("actor_name", sa.Text(), nullable=False),
        sa.Column("scope", sa.String(length=32), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object", sa.String(length=127), nullable=True),
        sa.Column("outcome", sa.String(length=8), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("before", sa.String(length=64), nullable=True),
        sa.Column("after", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_audit_project", "audit", ["project", "id"], unique=False)
    op.create_index("ix_audit_object", "audit", ["object"], unique=False)
    for table in _OWNED:
        op.add_column(table, sa.Column("project", sa.String(length=40), server_default="default", nullable=False))
    for name, kind in _KEY_COLUMNS.items():
        op.add_column("api_keys", sa.Column(name, kind, nullable=True))
    op.create_index("uq_api_keys_previous_hash", "api_keys", ["previous_hash"], unique=True)
    for name, table, columns, live in _UNIQUE:
        _unique_again(name, table, ["project", *columns], live)
    op.create_index("ix_sweeps_project", "sweeps", ["project", "kind", "id"], unique=False)
    if op.get_context().dialect.name == "sqlite":
        _rebuild_models(["project"], "uq_registry_models_name")
    else:
        op.drop_constraint("registry_models_name_key", "registry_models", type_="unique")
        op.create_unique_constraint("uq_registry_models_name", "registry_models", ["project", "name"])


def downgrade() -> None:
    """Raises where two projects share a name: what was apart cannot be put together."""
    if op.get_context().dialect.name == "sqlite":
        _rebuild_models([], None)
    else:
        op.drop_constraint("uq_registry_models_name", "registry_models", type_="unique")
        op.create_unique_constraint("registry_models_name_key", "registry_models", ["name"])
        op.drop_column("registry_models", "project")
    op.drop_index("ix_sweeps_project", table_name="sweeps")
    for name, table, columns, live in _UNIQUE:
        _unique_again(name, table, columns, live)
    op.drop_index("uq_api_keys_previous_hash", table_name="api_keys")
    for name in _KEY_COLUMNS:
        op.drop_column("api_keys", name)
    for table in _OWNED:
        if table != "registry_models":
            op.drop_column(table, "project")
    op.drop_table("audit")
    op.drop_table("projects")


def _unique_again(name: str, table: str, columns: list[str], live: str) -> None:
    op.drop_index(name, table_name=table)
    op.create_index(name, table, columns, unique=True, sqlite_where=sa.text(live), postgresql_where=sa.text(live))


def _rebuild_models(more: list[str], unique_name: str | None) -> None:
    """SQLite has no ALTER of a constraint: the table is made anew.

    Foreign keys are looked at when the transaction ends. The new table has the old name before its rows come, so that
    each row that comes takes back what the drop left hanging (a rename at the end would not).
    """
    kept = ["id", *more, "name", "created_by", "versions", "version", "event_seq", "created_at"]
    columns: dict[str, Any] = {
        "id": sa.Column("id", sa.String(length=40), nullable=False),
        "project": sa.Column("project", sa.String(length=40), server_default="default", nullable=False),
        "name": sa.Column("name", sa.String(length=63), nullable=False),
        "created_by": sa.Column("created_by", sa.Text(), nullable=False),
        "versions": sa.Column("versions", sa.Integer(), nullable=False),
        "version": sa.Column("version", sa.Integer(), nullable=False),
        "event_seq": sa.Column("event_seq", sa.Integer(), nullable=False),
        "created_at": sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    }
    op.execute("PRAGMA defer_foreign_keys=ON")
    op.execute("CREATE TEMPORARY TABLE registry_models_before AS SELECT * FROM registry_models")
    op.drop_table("registry_models")
    op.create_table(
        "registry_models",
        *(columns[name] for name in kept),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint(*more, "name", name=unique_name),
    )
    names = ", ".join(kept)
    op.execute(f"INSERT INTO registry_models ({names}) SELECT {names} FROM registry_models_before")
    op.execute("DROP TABLE registry_models_before")
