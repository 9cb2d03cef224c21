"""What jobs are steered by: pauses, weights and limits of organisations; deadlines, resumption, smaller pieces."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Organisations that are there weigh the same; no shard that is there ran out of memory."""
    with op.batch_alter_table("organisations") as table:
        table.add_column(sa.Column("paused_at", MOMENT))
        table.add_column(sa.Column("weight", sa.Double, nullable=False, server_default="1"))
        table.add_column(sa.Column("shards_max", sa.Integer))
    with op.batch_alter_table("organisations") as table:
        table.alter_column("weight", server_default=None)
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("build", sa.String(64), nullable=False, server_default=""))
        table.add_column(sa.Column("time_limit_s", sa.Integer))
        table.add_column(sa.Column("deadline_at", MOMENT))
        table.add_column(sa.Column("resumed_from", sa.String(64)))
        table.add_column(sa.Column("resumable_until", MOMENT))
    with op.batch_alter_table("jobs") as table:
        table.alter_column("build", server_default=None)
    op.create_index("ix_jobs_resumable_until", "jobs", ["resumable_until"])
    with op.batch_alter_table("job_shards") as table:
        table.add_column(sa.Column("halvings", sa.Integer, nullable=False, server_default="0"))
    with op.batch_alter_table("job_shards") as table:
        table.alter_column("halvings", server_default=None)


def downgrade() -> None:
    """Forget all of it."""
    with op.batch_alter_table("job_shards") as table:
        table.drop_column("halvings")
    op.drop_index("ix_jobs_resumable_until", "jobs")
    with op.batch_alter_table("jobs") as table:
        for name in ("resumable_until", "resumed_from", "deadline_at", "time_limit_s", "build"):
            table.drop_column(name)
    with op.batch_alter_table("organisations") as table:
        for name in ("shards_max", "weight", "paused_at"):
            table.drop_column(name)
