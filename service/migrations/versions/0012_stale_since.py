"""since when a state is not what the cluster says: columns that may be null"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("sweeps", sa.Column("stale_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("deployments", sa.Column("stale_since", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("deployments", "stale_since")
    op.drop_column("sweeps", "stale_since")
