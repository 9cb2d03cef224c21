"""What is kept for those who watch: lines and timings of jobs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KEY = sa.String(64)
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    """No job said anything yet."""
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("traceparent", sa.String(55), nullable=False, server_default=""))
        table.add_column(sa.Column("timing", JSON))
        table.add_column(sa.Column("log_lines", sa.Integer, nullable=False, server_default="0"))
    with op.batch_alter_table("jobs") as table:
        table.alter_column("traceparent", server_default=None)
        table.alter_column("log_lines", server_default=None)
    op.create_table(
        "job_logs",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("job_id", KEY, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("logger", sa.String(100), nullable=False),
        sa.Column("event", sa.String(2000), nullable=False),
        sa.Column("data", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_job_logs"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_logs_job_id_jobs", ondelete="CASCADE"),
    )
    op.create_index("ix_job_logs_job_id_id", "job_logs", ["job_id", "id"])


def downgrade() -> None:
    """Forget all of it."""
    op.drop_table("job_logs")
    with op.batch_alter_table("jobs") as table:
        for name in ("log_lines", "timing", "traceparent"):
            table.drop_column(name)
