"""deployments whose replicas leave while nobody asks: after how many seconds"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.add_column("deployments", sa.Column("idle_s", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("deployments", "idle_s")
