"""what generates a deployment's text: a column with a default"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column(
        "deployments", sa.Column("engine", sa.String(length=16), server_default="transformers", nullable=False)
    )


def downgrade() -> None:
    op.drop_column("deployments", "engine")
