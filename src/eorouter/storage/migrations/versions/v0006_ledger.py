"""The ledger, budgets, and first answers under idempotency keys; jobs carry what they cost.

Transfers are never changed: triggers refuse it on both engines, whoever asks.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEY, LONG = sa.String(64), sa.String(128)
MOMENT = sa.DateTime(timezone=True)
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CENTS = sa.BigInteger


def _org(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["org_id"], ["organisations.id"], name=f"fk_{table}_org_id_organisations")


def upgrade() -> None:
    """Make the tables; jobs that are there were free."""
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("reserved_cents", CENTS))
        table.add_column(sa.Column("captured_cents", CENTS))
        table.add_column(sa.Column("price_book", sa.String(100)))
    _accounts()
    _transfers()
    _budgets()
    op.create_table(
        "requests_done",
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("operation", sa.String(100), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("busy_until", MOMENT),
        sa.Column("status", sa.Integer),
        sa.Column("body", sa.LargeBinary),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("org_id", "key", name="pk_requests_done"),
        _org("requests_done"),
    )
    op.create_index("ix_requests_done_created_at", "requests_done", ["created_at"])
    _forbid_changes()


def _accounts() -> None:
    op.create_table(
        "ledger_accounts",
        sa.Column("id", LONG, nullable=False),
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("mode", sa.String(8), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("debits_pending", CENTS, nullable=False),
        sa.Column("debits_posted", CENTS, nullable=False),
        sa.Column("credits_pending", CENTS, nullable=False),
        sa.Column("credits_posted", CENTS, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_accounts"),
        _org("ledger_accounts"),
        sa.UniqueConstraint("org_id", "mode", "kind", name="uq_ledger_accounts_org_id_mode_kind"),
        sa.CheckConstraint(
            "debits_pending >= 0 AND debits_posted >= 0 AND credits_pending >= 0 AND credits_posted >= 0",
            name=op.f("ck_ledger_accounts_counters"),
        ),
        sa.CheckConstraint(
            "kind <> 'customer' OR credits_posted - debits_posted - debits_pending >= 0",
            name=op.f("ck_ledger_accounts_available"),
        ),
    )


def _transfers() -> None:
    op.create_table(
        "ledger_transfers",
        sa.Column("number", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("id", LONG, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("mode", sa.String(8), nullable=False),
        sa.Column("debit_id", LONG, nullable=False),
        sa.Column("credit_id", LONG, nullable=False),
        sa.Column("amount", CENTS, nullable=False),
        sa.Column("resolves", LONG),
        sa.Column("project_id", KEY),
        sa.Column("principal_id", KEY),
        sa.Column("reference", KEY),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("memo", sa.String(500), nullable=False),
        sa.Column("expires_at", MOMENT),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_ledger_transfers"),
        sa.UniqueConstraint("id", name="uq_ledger_transfers_id"),
        sa.UniqueConstraint("resolves", name="uq_ledger_transfers_resolves"),
        sa.UniqueConstraint("org_id", "idempotency_key", name="uq_ledger_transfers_org_id_idempotency_key"),
        _org("ledger_transfers"),
        sa.ForeignKeyConstraint(
            ["debit_id"], ["ledger_accounts.id"], name="fk_ledger_transfers_debit_id_ledger_accounts"
        ),
        sa.ForeignKeyConstraint(
            ["credit_id"], ["ledger_accounts.id"], name="fk_ledger_transfers_credit_id_ledger_accounts"
        ),
        sa.ForeignKeyConstraint(
            ["resolves"], ["ledger_transfers.id"], name="fk_ledger_transfers_resolves_ledger_transfers"
        ),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_ledger_transfers_amount")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_ledger_transfers_org_id_mode_number", "ledger_transfers", ["org_id", "mode", "number"])
    op.create_table(
        "ledger_open",
        sa.Column("transfer_id", LONG, nullable=False),
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("mode", sa.String(8), nullable=False),
        sa.Column("project_id", KEY, nullable=False),
        sa.Column("amount", CENTS, nullable=False),
        sa.Column("reference", KEY, nullable=False),
        sa.Column("budgets", JSON, nullable=False),
        sa.Column("expires_at", MOMENT),
        sa.PrimaryKeyConstraint("transfer_id", name="pk_ledger_open"),
        sa.UniqueConstraint("reference", name="uq_ledger_open_reference"),
        sa.ForeignKeyConstraint(
            ["transfer_id"], ["ledger_transfers.id"], name="fk_ledger_open_transfer_id_ledger_transfers"
        ),
    )
    op.create_index("ix_ledger_open_expires_at", "ledger_open", ["expires_at"])


def _budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", KEY, nullable=False),
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("project_id", KEY),
        sa.Column("key_id", KEY),
        sa.Column("mode", sa.String(8), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("period", sa.String(8), nullable=False),
        sa.Column("limit_cents", CENTS, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_budgets"),
        _org("budgets"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name="fk_budgets_project_id_projects", ondelete="CASCADE"
        ),
        sa.CheckConstraint("limit_cents >= 0", name=op.f("ck_budgets_limit_cents")),
    )
    op.create_index("ix_budgets_org_id_id", "budgets", ["org_id", "id"])
    op.create_index("ix_budgets_project_id", "budgets", ["project_id"])
    op.create_table(
        "budget_usage",
        sa.Column("budget_id", KEY, nullable=False),
        sa.Column("period", sa.String(10), nullable=False),
        sa.Column("committed", CENTS, nullable=False),
        sa.PrimaryKeyConstraint("budget_id", "period", name="pk_budget_usage"),
        sa.ForeignKeyConstraint(
            ["budget_id"], ["budgets.id"], name="fk_budget_usage_budget_id_budgets", ondelete="CASCADE"
        ),
        sa.CheckConstraint("committed >= 0", name=op.f("ck_budget_usage_committed")),
    )


def _forbid_changes() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER ledger_transfers_{event.lower()} BEFORE {event} ON ledger_transfers "
                "BEGIN SELECT RAISE(ABORT, 'ledger transfers are never changed'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'ledger transfers are never changed'; END $$"
    )
    op.execute(
        "CREATE TRIGGER ledger_transfers_fixed BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_transfers "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change()"
    )


def downgrade() -> None:
    """Forget all money."""
    for table in ("requests_done", "budget_usage", "budgets", "ledger_open", "ledger_transfers", "ledger_accounts"):
        op.drop_table(table)
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION refuse_ledger_change()")
    with op.batch_alter_table("jobs") as table:
        for name in ("price_book", "captured_cents", "reserved_cents"):
            table.drop_column(name)
