"""trials are counted by state from an index alone"""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_index("ix_trials_state", "trials", ["sweep_id", "state"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_trials_state", table_name="trials")
