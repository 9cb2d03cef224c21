"""Saved formulas of an organisation."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEY = sa.String(64)
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "band_formulas",
        sa.Column("id", KEY, nullable=False),
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("description", sa.String(2000), nullable=False),
        sa.Column("expression", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_by", KEY, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_band_formulas"),
        sa.ForeignKeyConstraint(["org_id"], ["organisations.id"], name="fk_band_formulas_org_id_organisations"),
        sa.UniqueConstraint("org_id", "name", name="uq_band_formulas_org_id_name"),
    )
    op.create_index("ix_band_formulas_org_id_id", "band_formulas", ["org_id", "id"])


def downgrade() -> None:
    """Forget the formulas."""
    op.drop_table("band_formulas")
