"""lists of sweeps read an index alone: in SQLite a row's version lies behind its result, pages further on"""

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.create_index("ix_sweeps_listed", "sweeps", ["project", "kind", "id", "version", "state"])
    op.drop_index("ix_sweeps_project", table_name="sweeps")


def downgrade() -> None:
    op.create_index("ix_sweeps_project", "sweeps", ["project", "kind", "id"])
    op.drop_index("ix_sweeps_listed", table_name="sweeps")
