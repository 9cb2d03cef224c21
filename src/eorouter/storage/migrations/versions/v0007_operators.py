"""What the operator's page needs: who is an operator, throughput by minute, and ended jobs by the time they ended."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nobody is an operator yet, and nothing was counted."""
    with op.batch_alter_table("users") as table:
        table.add_column(sa.Column("is_operator", sa.Boolean, nullable=False, server_default=sa.false()))
    with op.batch_alter_table("users") as table:
        table.alter_column("is_operator", server_default=None)
    op.create_table(
        "throughput",
        sa.Column("minute", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("shards", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.BigInteger, nullable=False),
        sa.Column("pixels", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("minute", name="pk_throughput"),
    )
    op.create_index("ix_jobs_ended", "jobs", ["state", "finished_at"])


def downgrade() -> None:
    """Forget all of it."""
    op.drop_index("ix_jobs_ended", "jobs")
    op.drop_table("throughput")
    with op.batch_alter_table("users") as table:
        table.drop_column("is_operator")
