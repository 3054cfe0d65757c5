"""what a sweep that is over tried, counted by state, is kept with it; null: it is counted when asked"""

from collections import defaultdict

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_OVER = ("SUCCEEDED", "FAILED", "CANCELLED")


def upgrade() -> None:
    op.add_column("sweeps", sa.Column("trial_counts", sa.JSON(), nullable=True))
    sweeps = sa.table("sweeps", sa.column("id"), sa.column("state"), sa.column("trial_counts", sa.JSON()))
    trials = sa.table("trials", sa.column("sweep_id"), sa.column("state"))
    bind = op.get_bind()
    # Over is over: neither code of this revision nor of the one before changes these any more.
    over = sa.select(sweeps.c.id).where(sweeps.c.state.in_(_OVER))
    counted = sa.select(trials.c.sweep_id, trials.c.state, sa.func.count()).where(trials.c.sweep_id.in_(over))
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for sweep_id, state, number in bind.execute(counted.group_by(trials.c.sweep_id, trials.c.state)):
        counts[sweep_id][state] = number
    one = sa.update(sweeps).where(sweeps.c.id == sa.bindparam("of")).values(trial_counts=sa.bindparam("counts"))
    if counts:
        bind.execute(one, [{"of": sweep_id, "counts": each} for sweep_id, each in counts.items()])


def downgrade() -> None:
    op.drop_column("sweeps", "trial_counts")
