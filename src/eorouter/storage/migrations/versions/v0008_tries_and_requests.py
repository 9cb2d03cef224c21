"""Tries of shards that were given back in order, what a transfer was asked for, and failed log-ins of operators."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing was given back yet; of older transfers nobody knows any more what was asked."""
    with op.batch_alter_table("job_shards") as table:
        table.add_column(sa.Column("released", sa.Integer, nullable=False, server_default="0"))
    with op.batch_alter_table("job_shards") as table:
        table.alter_column("released", server_default=None)
    # No batch, which on SQLite would copy the table and lose the triggers that keep transfers as they are.
    op.add_column("ledger_transfers", sa.Column("digest", sa.String(64)))
    op.create_table(
        "log_in_tries",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_log_in_tries"),
    )
    op.create_index("ix_log_in_tries_since", "log_in_tries", ["since"])


def downgrade() -> None:
    """Forget all of it."""
    op.drop_table("log_in_tries")
    op.drop_column("ledger_transfers", "digest")
    with op.batch_alter_table("job_shards") as table:
        table.drop_column("released")
