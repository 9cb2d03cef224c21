"""Every table. Who may see a row is decided by `owned`, and nowhere else.

Rows of a tenant carry `org_id`, and `project_id` where they belong to a project. Ids sort by creation, so lists are
`WHERE id < :cursor ORDER BY id DESC` on an index of the organisation's or the project's ids.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from eorouter.storage.database import UtcDateTime
from eorouter.types import Principal

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Json = sa.JSON().with_variant(JSONB(), "postgresql")
Key = sa.String(64)
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite's rowid is an INTEGER PRIMARY KEY, nothing else


def _owner(*, with_project: bool = True) -> list[sa.Column]:
    columns = [sa.Column("org_id", Key, sa.ForeignKey("organisations.id"), nullable=False)]
    if with_project:
        columns.append(sa.Column("project_id", Key, sa.ForeignKey("projects.id"), nullable=False))
    return columns


def _listed() -> list[sa.Index]:
    """Lists of a project and of its organisation; the first also finds what still hangs on a project to be deleted."""
    return [sa.Index(None, "project_id", "id"), sa.Index(None, "org_id", "id")]


users = sa.Table(
    "users",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("email", sa.String(320), nullable=False, unique=True),  # folded to lower case
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("password_hash", sa.String(200), nullable=False),
    sa.Column("country_code", sa.String(2)),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("is_operator", sa.Boolean, nullable=False, default=False),  # sees the whole installation, changes nothing
)

organisations = sa.Table(
    "organisations",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("quota_bytes", sa.BigInteger, nullable=False),
    sa.Column("used_bytes", sa.BigInteger, nullable=False),  # items, and uploads at their declared size
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("paused_at", UtcDateTime),  # while it is set, nothing of its jobs is begun
    sa.Column("weight", sa.Double, nullable=False, default=1.0),  # its share of the workers beside others'
    sa.Column("shards_max", sa.Integer),  # most shards under way at a time
    sa.CheckConstraint("used_bytes >= 0", name="used_bytes"),
)

memberships = sa.Table(
    "memberships",
    metadata,
    sa.Column("org_id", Key, sa.ForeignKey("organisations.id"), primary_key=True),
    sa.Column("user_id", Key, sa.ForeignKey("users.id"), primary_key=True, index=True),
    sa.Column("role", sa.String(16), nullable=False),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", Key, primary_key=True),  # the family of all refresh tokens of one log-in
    sa.Column("user_id", Key, sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("org_id", Key, sa.ForeignKey("organisations.id"), nullable=False),
    sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),  # of the one token that is current
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("ended_at", UtcDateTime),
)

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", Key, primary_key=True),
    *_owner(with_project=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("description", sa.String(2000), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Index(None, "org_id", "id"),
)

band_formulas = sa.Table(
    "band_formulas",
    metadata,
    sa.Column("id", Key, primary_key=True),
    *_owner(with_project=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("description", sa.String(2000), nullable=False),
    sa.Column("expression", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("created_by", Key, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.UniqueConstraint("org_id", "name"),
    sa.Index(None, "org_id", "id"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", Key, primary_key=True),
    *_owner(with_project=False),
    sa.Column("project_id", Key, sa.ForeignKey("projects.id")),  # restriction to one project
    sa.Column("public_id", sa.String(16), nullable=False, unique=True),  # the part of the key that is looked up
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("mode", sa.String(8), nullable=False),
    sa.Column("scopes", Json, nullable=False),
    sa.Column("verifier", sa.String(100), nullable=False),  # bcrypt
    sa.Column("last4", sa.String(4), nullable=False),
    sa.Column("created_by", Key, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("revoked_at", UtcDateTime),
    *_listed(),
)

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", Key, primary_key=True),
    *_owner(),
    sa.Column("filename", sa.String(255), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # initiated, received, ingesting, completed, failed
    sa.Column(
        "declared_bytes", sa.BigInteger, nullable=False
    ),  # counted in the organisation's used_bytes until the end
    sa.Column("received_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64)),
    sa.Column("object_key", sa.String(512), nullable=False),
    sa.Column("description", Json, nullable=False),  # what the caller said of the file: title, datetime, bands
    sa.Column("job_id", Key),
    sa.Column("item_id", Key),
    sa.Column("problem", Json),  # code and message, when failed
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    *_listed(),
    sa.Index(None, "job_id"),
)

# A literal, because SQLite takes a partial index only for a condition it can read, which a bound value is not.
HAS_OBJECTS = uploads.c.object_key != sa.literal_column("''")
"""Condition on uploads whose objects have not been deleted for the last time; these the sweep looks at."""

sa.Index("ix_uploads_sweep", uploads.c.expires_at, sqlite_where=HAS_OBJECTS, postgresql_where=HAS_OBJECTS)

items = sa.Table(
    "items",
    metadata,
    sa.Column("id", Key, primary_key=True),
    *_owner(),
    sa.Column("title", sa.String(500), nullable=False),
    sa.Column("at", UtcDateTime),
    sa.Column("document", Json, nullable=False),  # the STAC item without links; asset hrefs are object keys
    sa.Column("input", Json, nullable=False),  # the item as a method sees it (InputItem); hrefs are object keys
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("job_id", Key),  # the job that made it
    sa.Column("created_at", UtcDateTime, nullable=False),
    *_listed(),
    sa.Index(None, "org_id", "at", "id"),
)

item_boxes = sa.Table(
    # A box per part of the footprint: one that crosses the antimeridian has two. PostgreSQL indexes it with GiST over
    # box(point, point); SQLite keeps an R*Tree beside it, filled by triggers. Both come from the migration.
    "item_boxes",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("item_id", Key, sa.ForeignKey("items.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("west", sa.Double, nullable=False),
    sa.Column("south", sa.Double, nullable=False),
    sa.Column("east", sa.Double, nullable=False),
    sa.Column("north", sa.Double, nullable=False),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", Key, primary_key=True),
    *_owner(),
    sa.Column("mode", sa.String(8), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("method", sa.String(64), nullable=False),
    sa.Column("task", Json, nullable=False),  # the method's parameters, with their tag
    sa.Column("inputs", Json, nullable=False),  # InputItem documents as planned, hrefs are object keys
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("bound", Json, nullable=False),
    sa.Column("is_interactive", sa.Boolean, nullable=False),
    sa.Column("pixels_done", sa.BigInteger, nullable=False),
    sa.Column("shards_total", sa.Integer, nullable=False),
    sa.Column("shards_done", sa.Integer, nullable=False),
    sa.Column("result", Json),  # item ids by name, summary, read report, checksums
    sa.Column("problem", Json),  # code, message and shard, when failed
    sa.Column("is_cancelling", sa.Boolean, nullable=False),
    sa.Column("created_by", Key, nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("queued_at", UtcDateTime),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("build", sa.String(64), nullable=False, default=""),  # of whoever planned it
    sa.Column("time_limit_s", sa.Integer),
    sa.Column("deadline_at", UtcDateTime),  # set when it starts
    sa.Column("resumed_from", Key),  # the failed job whose finished shards it took over
    sa.Column("resumable_until", UtcDateTime),  # a failed job's finished shards are kept until then
    sa.Column("traceparent", sa.String(55), nullable=False, default=""),  # of the request that made it
    sa.Column("timing", Json),  # seconds of all its shards by stage, bytes, and the largest peak
    sa.Column("log_lines", sa.Integer, nullable=False, default=0),  # kept so far: their number is bounded
    sa.Column("reserved_cents", sa.BigInteger),  # the most it can cost; None where nothing is charged
    sa.Column("captured_cents", sa.BigInteger),  # what it came to, once it has ended
    sa.Column("price_book", sa.String(100)),  # version and digest of the prices it was promised at
    *_listed(),
    sa.Index("ix_jobs_open", "state", "id"),
    sa.Index("ix_jobs_ended", "state", "finished_at"),
    sa.Index(None, "resumable_until"),
)

job_shards = sa.Table(
    "job_shards",
    metadata,
    sa.Column("job_id", Key, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),  # -1 is the merge, -1 - n the turn that makes round n
    sa.Column("state", sa.String(16), nullable=False),  # waiting, ready, leased, done, failed
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("bound", Json, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),  # tries so far
    sa.Column("token", sa.BigInteger, nullable=False),  # fencing token: only the current one's output counts
    sa.Column("owner", Key),  # dispatcher that holds the lease
    sa.Column("lease_until", UtcDateTime),
    sa.Column("ready_at", UtcDateTime, nullable=False),  # backoff after a failed try
    sa.Column("part", sa.LargeBinary),  # msgpack of Part (of Result for the merge)
    sa.Column("timing", Json),
    # A shard belongs to its round; the turn to round n, and the merge after the last, work on what round - 1 left.
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("halvings", sa.Integer, nullable=False),  # of the pieces it is streamed in, after it ran out of memory
    sa.Column("released", sa.Integer, nullable=False, default=0),  # tries given back by who was told to stop
    sa.Index("ix_job_shards_ready", "job_id", "state", "number"),  # a claim takes the first ready ones of one job
    sa.Index("ix_job_shards_lease", "state", "lease_until"),
)

job_events = sa.Table(
    "job_events",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("job_id", Key, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("type", sa.String(64), nullable=False),  # noun.past_participle
    sa.Column("data", Json, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Index(None, "job_id", "id"),
    sqlite_autoincrement=True,  # an id is never given twice, so Last-Event-ID never skips
)

job_logs = sa.Table(
    "job_logs",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("job_id", Key, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # the shard that said it
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),  # by the worker's clock
    sa.Column("level", sa.String(16), nullable=False),
    sa.Column("logger", sa.String(100), nullable=False),
    sa.Column("event", sa.String(2000), nullable=False),
    sa.Column("data", Json, nullable=False),
    sa.Index(None, "job_id", "id"),
)

throughput = sa.Table(
    # What all dispatchers did, by minute, for an hour's look back.
    "throughput",
    metadata,
    sa.Column("minute", sa.BigInteger, primary_key=True, autoincrement=False),  # since 1970
    sa.Column("shards", sa.BigInteger, nullable=False),
    sa.Column("failures", sa.BigInteger, nullable=False),  # tries
    sa.Column("pixels", sa.BigInteger, nullable=False),
)

ledger_accounts = sa.Table(
    "ledger_accounts",
    metadata,
    sa.Column("id", sa.String(128), primary_key=True),  # org:mode:kind
    *_owner(with_project=False),
    sa.Column("mode", sa.String(8), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),  # customer, funding, revenue
    sa.Column("debits_pending", sa.BigInteger, nullable=False),
    sa.Column("debits_posted", sa.BigInteger, nullable=False),
    sa.Column("credits_pending", sa.BigInteger, nullable=False),
    sa.Column("credits_posted", sa.BigInteger, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.UniqueConstraint("org_id", "mode", "kind"),
    sa.CheckConstraint(
        "debits_pending >= 0 AND debits_posted >= 0 AND credits_pending >= 0 AND credits_posted >= 0", name="counters"
    ),
    sa.CheckConstraint("kind <> 'customer' OR credits_posted - debits_posted - debits_pending >= 0", name="available"),
)

ledger_transfers = sa.Table(
    # Never changed and never deleted: triggers of the migration see to it.
    "ledger_transfers",
    metadata,
    sa.Column("number", BigId, primary_key=True, autoincrement=True),  # lists go by it, newest first
    sa.Column("id", sa.String(128), nullable=False, unique=True),
    sa.Column("kind", sa.String(16), nullable=False),  # grant, reserve; capture, release, expire resolve a reserve
    *_owner(with_project=False),
    sa.Column("mode", sa.String(8), nullable=False),
    sa.Column("debit_id", sa.String(128), sa.ForeignKey("ledger_accounts.id"), nullable=False),
    sa.Column("credit_id", sa.String(128), sa.ForeignKey("ledger_accounts.id"), nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("resolves", sa.String(128), sa.ForeignKey("ledger_transfers.id"), unique=True),
    sa.Column("project_id", Key),
    sa.Column("principal_id", Key),
    sa.Column("reference", Key),  # what was bought: a job
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("memo", sa.String(500), nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("digest", sa.String(64)),  # of what was asked under the key, as in `requests_done`
    sa.CheckConstraint("amount >= 0", name="amount"),
    sa.UniqueConstraint("org_id", "idempotency_key"),  # keyed for ever
    sa.Index(None, "org_id", "mode", "number"),
    sqlite_autoincrement=True,
)

ledger_open = sa.Table(
    # Reservations that nobody has resolved: whoever deletes the row resolves it.
    "ledger_open",
    metadata,
    sa.Column("transfer_id", sa.String(128), sa.ForeignKey("ledger_transfers.id"), primary_key=True),
    sa.Column("org_id", Key, nullable=False),
    sa.Column("mode", sa.String(8), nullable=False),
    sa.Column("project_id", Key, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("reference", Key, nullable=False, unique=True),
    sa.Column("budgets", Json, nullable=False),  # pairs of budget and period that count it
    sa.Column("expires_at", UtcDateTime, index=True),
)

budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("id", Key, primary_key=True),
    *_owner(with_project=False),
    sa.Column("project_id", Key, sa.ForeignKey("projects.id", ondelete="CASCADE")),  # None: of all projects
    sa.Column("key_id", Key),  # None: whoever spends
    sa.Column("mode", sa.String(8), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("period", sa.String(8), nullable=False),  # day, month, ever
    sa.Column("limit_cents", sa.BigInteger, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.CheckConstraint("limit_cents >= 0", name="limit_cents"),
    sa.Index(None, "org_id", "id"),
    sa.Index(None, "project_id"),
)

budget_usage = sa.Table(
    "budget_usage",
    metadata,
    sa.Column("budget_id", Key, sa.ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("period", sa.String(10), primary_key=True),
    sa.Column("committed", sa.BigInteger, nullable=False),  # cents reserved or spent
    sa.CheckConstraint("committed >= 0", name="committed"),
)

requests_done = sa.Table(
    # First answers under an idempotency key, for replay.
    "requests_done",
    metadata,
    sa.Column("org_id", Key, sa.ForeignKey("organisations.id"), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("operation", sa.String(100), nullable=False),
    # Of the operation, the request, the mode and the project that the key is restricted to.
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("busy_until", UtcDateTime),  # None once it is answered
    sa.Column("status", sa.Integer),
    sa.Column("body", sa.LargeBinary),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Index(None, "created_at"),
)

log_in_tries = sa.Table(
    # Failed log-ins of operators lately, by who tried: a digest of it, which is of one length whatever they typed.
    "log_in_tries",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("since", UtcDateTime, nullable=False, index=True),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("org_id", Key, nullable=False),
    sa.Column("topic", sa.String(64), nullable=False),
    sa.Column("payload", Json, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("handled_at", UtcDateTime),
    sa.Index(None, "handled_at", "id"),
    sqlite_autoincrement=True,
)

processes = sa.Table(
    # Who is alive: dispatchers write a heartbeat with what their cluster looks like; readiness reads it.
    "processes",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("seen_at", UtcDateTime, nullable=False),
    sa.Column("detail", Json, nullable=False),
)


def owned(table: sa.Table, principal: Principal) -> sa.ColumnElement[bool]:
    """The rows of `table` that `principal` may know of: its organisation's and, for a restricted key, its project's.

    Formulas belong to no project: a restricted key may use its organisation's.
    """
    condition = table.c.org_id == principal.org_id
    if principal.project_id is not None and table is not band_formulas:
        project = table.c.id if table is projects else table.c.project_id
        condition &= project == principal.project_id
    return condition
