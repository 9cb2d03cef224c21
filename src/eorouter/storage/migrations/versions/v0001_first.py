"""The first schema.

Written out and frozen: it names no table of the code, which goes on changing while this stays. PostgreSQL indexes the
boxes of items with GiST; SQLite keeps an R*Tree beside them, which triggers fill (its 32-bit floats are rounded
outwards, so it finds too much rather than too little, and readers compare the exact columns afterwards).
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.String(64)
MOMENT = sa.DateTime(timezone=True)
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

TABLES = (
    "users",
    "organisations",
    "memberships",
    "sessions",
    "projects",
    "api_keys",
    "uploads",
    "items",
    "item_boxes",
    "jobs",
    "job_shards",
    "job_events",
    "outbox",
    "processes",
)

BOX_INDEX_ON_POSTGRESQL = """
    CREATE INDEX ix_item_boxes_box ON item_boxes USING gist (box(point(west, south), point(east, north)))
"""
BOX_INDEX_ON_SQLITE = (
    "CREATE VIRTUAL TABLE item_boxes_rtree USING rtree(id, west, east, south, north)",
    """
    CREATE TRIGGER item_boxes_inserted AFTER INSERT ON item_boxes BEGIN
        INSERT INTO item_boxes_rtree (id, west, east, south, north)
        VALUES (new.id, new.west, new.east, new.south, new.north);
    END
    """,
    """
    CREATE TRIGGER item_boxes_updated AFTER UPDATE ON item_boxes BEGIN
        DELETE FROM item_boxes_rtree WHERE id = old.id;
        INSERT INTO item_boxes_rtree (id, west, east, south, north)
        VALUES (new.id, new.west, new.east, new.south, new.north);
    END
    """,
    """
    CREATE TRIGGER item_boxes_deleted AFTER DELETE ON item_boxes BEGIN
        DELETE FROM item_boxes_rtree WHERE id = old.id;
    END
    """,
)


def upgrade() -> None:
    """Make every table."""
    _create_people()
    _create_projects()
    _create_imagery()
    _index_boxes()
    _create_jobs()
    _create_processes()


def downgrade() -> None:
    """Drop every table, with all that is in it."""
    if op.get_bind().dialect.name == "sqlite":
        for trigger in ("inserted", "updated", "deleted"):
            op.execute(f"DROP TRIGGER item_boxes_{trigger}")
        op.execute("DROP TABLE item_boxes_rtree")
    for table in reversed(TABLES):
        op.drop_table(table)


def _index_boxes() -> None:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in BOX_INDEX_ON_SQLITE if is_sqlite else (BOX_INDEX_ON_POSTGRESQL,):
        op.execute(statement)


def _index_lists(table: str) -> None:
    """Lists of a project and of its organisation."""
    for owner in ("project_id", "org_id"):
        op.create_index(op.f(f"ix_{table}_{owner}_id"), table, [owner, "id"])


def _create_people() -> None:
    """Users, organisations, who belongs where, and log-ins."""
    op.create_table(
        "users",
        sa.Column("id", KEY, nullable=False),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("password_hash", sa.String(200), nullable=False),
        sa.Column("country_code", sa.String(2)),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_table(
        "organisations",
        sa.Column("id", KEY, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("quota_bytes", sa.BigInteger(), nullable=False),
        sa.Column("used_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint("used_bytes >= 0", name=op.f("ck_organisations_used_bytes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organisations")),
    )
    op.create_table(
        "memberships",
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("user_id", KEY, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organisations.id"], name=op.f("fk_memberships_org_id_organisations")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_memberships_user_id_users")),
        sa.PrimaryKeyConstraint("org_id", "user_id", name=op.f("pk_memberships")),
    )
    op.create_index(op.f("ix_memberships_user_id"), "memberships", ["user_id"])
    op.create_table(
        "sessions",
        sa.Column("id", KEY, nullable=False),
        sa.Column("user_id", KEY, nullable=False),
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("token_sha256", KEY, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT),
        sa.ForeignKeyConstraint(["org_id"], ["organisations.id"], name=op.f("fk_sessions_org_id_organisations")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_sessions_token_sha256")),
    )
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"])


def _create_projects() -> None:
    """Projects, and API keys, which can be restricted to one."""
    op.create_table(
        "projects",
        sa.Column("id", KEY, nullable=False),
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("description", sa.String(2000), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organisations.id"], name=op.f("fk_projects_org_id_organisations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
    )
    op.create_index(op.f("ix_projects_org_id_id"), "projects", ["org_id", "id"])
    op.create_table(
        "api_keys",
        sa.Column("id", KEY, nullable=False),
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("project_id", KEY),
        sa.Column("public_id", sa.String(16), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("mode", sa.String(8), nullable=False),
        sa.Column("scopes", JSON, nullable=False),
        sa.Column("verifier", sa.String(100), nullable=False),
        sa.Column("last4", sa.String(4), nullable=False),
        sa.Column("created_by", KEY, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT),
        sa.Column("revoked_at", MOMENT),
        sa.ForeignKeyConstraint(["org_id"], ["organisations.id"], name=op.f("fk_api_keys_org_id_organisations")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_api_keys_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("public_id", name=op.f("uq_api_keys_public_id")),
    )
    _index_lists("api_keys")


def _create_imagery() -> None:
    """Uploads and items."""
    op.create_table(
        "uploads",
        sa.Column("id", KEY, nullable=False),
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("project_id", KEY, nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("declared_bytes", sa.BigInteger(), nullable=False),
        sa.Column("received_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", KEY),
        sa.Column("object_key", sa.String(512), nullable=False),
        sa.Column("description", JSON, nullable=False),
        sa.Column("job_id", KEY),
        sa.Column("item_id", KEY),
        sa.Column("problem", JSON),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organisations.id"], name=op.f("fk_uploads_org_id_organisations")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_uploads_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    _index_lists("uploads")
    op.create_index(op.f("ix_uploads_job_id"), "uploads", ["job_id"])
    has_objects = sa.text("object_key != ''")
    op.create_index(
        "ix_uploads_sweep", "uploads", ["expires_at"], sqlite_where=has_objects, postgresql_where=has_objects
    )
    op.create_table(
        "items",
        sa.Column("id", KEY, nullable=False),
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("project_id", KEY, nullable=False),
        sa.Column("title", sa.String(500), nullable=False),
        sa.Column("at", MOMENT),
        sa.Column("document", JSON, nullable=False),
        sa.Column("input", JSON, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("job_id", KEY),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organisations.id"], name=op.f("fk_items_org_id_organisations")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_items_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_items")),
    )
    op.create_index(op.f("ix_items_org_id_at_id"), "items", ["org_id", "at", "id"])
    _index_lists("items")
    op.create_table(
        "item_boxes",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("item_id", KEY, nullable=False),
        sa.Column("west", sa.Double(), nullable=False),
        sa.Column("south", sa.Double(), nullable=False),
        sa.Column("east", sa.Double(), nullable=False),
        sa.Column("north", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["item_id"], ["items.id"], name=op.f("fk_item_boxes_item_id_items"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_item_boxes")),
    )
    op.create_index(op.f("ix_item_boxes_item_id"), "item_boxes", ["item_id"])


def _create_jobs() -> None:
    """Jobs, their shards and events."""
    op.create_table(
        "jobs",
        sa.Column("id", KEY, nullable=False),
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("project_id", KEY, nullable=False),
        sa.Column("mode", sa.String(8), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("method", KEY, nullable=False),
        sa.Column("task", JSON, nullable=False),
        sa.Column("inputs", JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("bound", JSON, nullable=False),
        sa.Column("is_interactive", sa.Boolean(), nullable=False),
        sa.Column("pixels_done", sa.BigInteger(), nullable=False),
        sa.Column("shards_total", sa.Integer(), nullable=False),
        sa.Column("shards_done", sa.Integer(), nullable=False),
        sa.Column("result", JSON),
        sa.Column("problem", JSON),
        sa.Column("is_cancelling", sa.Boolean(), nullable=False),
        sa.Column("created_by", KEY, nullable=False),
        sa.Column("request_id", KEY, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("queued_at", MOMENT),
        sa.Column("started_at", MOMENT),
        sa.Column("finished_at", MOMENT),
        sa.ForeignKeyConstraint(["org_id"], ["organisations.id"], name=op.f("fk_jobs_org_id_organisations")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_jobs_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_open", "jobs", ["state", "id"])
    _index_lists("jobs")
    op.create_table(
        "job_shards",
        sa.Column("job_id", KEY, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("bound", JSON, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("owner", KEY),
        sa.Column("lease_until", MOMENT),
        sa.Column("ready_at", MOMENT, nullable=False),
        sa.Column("part", sa.LargeBinary()),
        sa.Column("timing", JSON),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_shards_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_job_shards")),
    )
    op.create_index("ix_job_shards_lease", "job_shards", ["state", "lease_until"])
    op.create_index("ix_job_shards_ready", "job_shards", ["job_id", "state", "number"])

    op.create_table(
        "job_events",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("job_id", KEY, nullable=False),
        sa.Column("type", KEY, nullable=False),
        sa.Column("data", JSON, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_job_events_job_id_id"), "job_events", ["job_id", "id"])


def _create_processes() -> None:
    """Effects to carry out, and who is alive to do it."""
    op.create_table(
        "outbox",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("org_id", KEY, nullable=False),
        sa.Column("topic", KEY, nullable=False),
        sa.Column("payload", JSON, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("handled_at", MOMENT),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_outbox_handled_at_id"), "outbox", ["handled_at", "id"])
    op.create_table(
        "processes",
        sa.Column("id", KEY, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.Column("detail", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_processes")),
    )
