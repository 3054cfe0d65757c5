"""deployments that share the replicas of their base; null: it has replicas of its own, as those of before"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("deployments", sa.Column("base_path", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("deployments", "base_path")
