"""Jobs in rounds: every shard knows its round, and the merge comes after the last."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Jobs that are there have one round."""
    with op.batch_alter_table("job_shards") as table:
        table.add_column(sa.Column("round", sa.Integer, nullable=False, server_default="0"))
    op.execute("UPDATE job_shards SET round = 1 WHERE number = -1")
    with op.batch_alter_table("job_shards") as table:
        table.alter_column("round", server_default=None)


def downgrade() -> None:
    """Forget the rounds."""
    with op.batch_alter_table("job_shards") as table:
        table.drop_column("round")
