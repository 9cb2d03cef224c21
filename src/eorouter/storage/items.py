"""Items: the STAC document, what a method needs to know, and where it lies; all in one transaction.

`add` is the only way an item comes to be. Search goes through the box index (R*Tree on SQLite, GiST on PostgreSQL) and
is refined with the footprint, so a page is exact and never longer than asked for.
"""

import hashlib
import re
import unicodedata
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import shapely
import sqlalchemy as sa
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.errors import Conflict, Fault, InvalidInput, NotFound
from eorouter.storage import stac
from eorouter.storage.database import Database, spelled
from eorouter.storage.deletions import delete_later
from eorouter.storage.objects import Objects
from eorouter.storage.tables import item_boxes, items, jobs, organisations, owned
from eorouter.types import Principal
from eorouter_compute.method import InputItem, OutputItem

FILENAME_MAX = 120
JOB_STATES_OPEN = ("created", "queued", "running", "publishing")

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_WINDOWS_DEVICE = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_INSTANT = re.compile(
    r"^(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)$"
)  # RFC 3339 §5.6; a space for the T is its own note
_SCAN_ROWS = 200

rtree = sa.table("item_boxes_rtree", *(sa.column(name) for name in ("id", "west", "east", "south", "north")))
"""SQLite's box index as the migration makes it; its numbers are 32-bit and rounded outwards."""


def safe_filename(text: str, default: str = "file") -> str:
    """A name every file system and every header can carry, as near to `text` as that allows.

    Folders and drive letters are dropped, other characters become `_`. A name that had to change carries a short digest
    of the original, so that two names never fall together.
    """
    name = text.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    name = _UNSAFE.sub("_", name).strip("._-")
    if _WINDOWS_DEVICE.match(name):
        name = f"_{name}"
    if name and name == text and len(name) <= FILENAME_MAX:
        return name
    mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    stem, dot, suffix = name.rpartition(".")
    if not dot or len(suffix) > 10:
        stem, dot, suffix = name, "", ""
    stem = (stem or default)[: FILENAME_MAX - len(dot + suffix) - len(mark) - 1]
    return f"{stem}-{mark}{dot}{suffix}"


def asset_key(org_id: str, project_id: str, item_id: str, filename: str) -> str:
    """Object key of an item's file; a hostile file name is made harmless."""
    return f"{org_id}/{project_id}/items/{item_id}/{safe_filename(filename)}"


async def add(
    tx: AsyncConnection,
    db: Database,
    *,
    org_id: str,
    project_id: str,
    item_id: str,
    output: OutputItem,
    keys: Mapping[str, str],
    job_id: str | None,
    provenance: Mapping[str, Any],
    now: datetime,
) -> dict[str, Any]:
    """Record an item whose objects are in place; returns its STAC document.

    Adding the same id again changes nothing: a publish that was interrupted can be repeated.

    Args:
        tx: the publishing transaction.
        db: whose dialect `tx` speaks.
        org_id: owner.
        project_id: owner.
        item_id: id of the new item.
        output: what the method left.
        keys: object key per asset key.
        job_id: the job that made it.
        provenance: see `stac.document`.
        now: the moment of creation.
    """
    made = stac.document(item_id, output, keys, provenance=provenance, project_id=project_id, job_id=job_id, now=now)
    size = sum(asset.object.size for asset in output.assets)
    row = {
        "id": item_id, "org_id": org_id, "project_id": project_id, "title": made["properties"]["title"][:500],
        "at": output.at, "document": made, "input": spelled(msgspec.to_builtins(_input(item_id, output, keys))),
        "size_bytes": size, "job_id": job_id, "created_at": now,
    }  # fmt: skip
    inserted = await tx.execute(db.insert(items).values(row).on_conflict_do_nothing().returning(items.c.id))
    if inserted.first() is None:
        return (await tx.execute(sa.select(items.c.document).where(items.c.id == item_id))).scalar_one()
    boxes = stac.footprint(output.footprint, output.bbox).boxes
    sides = ("west", "south", "east", "north")
    await tx.execute(
        sa.insert(item_boxes), [{"item_id": item_id, **dict(zip(sides, box, strict=True))} for box in boxes]
    )
    await tx.execute(
        sa.update(organisations)
        .where(organisations.c.id == org_id)
        .values(used_bytes=organisations.c.used_bytes + size)
    )
    return made


def _input(item_id: str, output: OutputItem, keys: Mapping[str, str]) -> InputItem:
    """The item as a method sees it; hrefs are object keys."""
    assets = []
    for asset in output.assets:
        seen = asset.raster or asset.vector
        if seen is not None:
            assets.append(
                msgspec.structs.replace(seen, key=asset.key, href=keys[asset.key], sha256=asset.object.sha256)
            )
    return InputItem(id=item_id, assets=tuple(assets), at=output.at, properties=output.properties)


async def load_inputs(
    tx: AsyncConnection, objects: Objects, principal: Principal, item_ids: Sequence[str]
) -> list[InputItem]:
    """Items as methods take them, in the order asked for, hrefs resolved to URLs.

    Raises:
        NotFound: an id is unknown or somebody else's; every such id is located in `/inputs`.
    """
    rows = await tx.execute(sa.select(items.c.id, items.c.input).where(owned(items, principal), _among(item_ids)))
    found = {row.id: row.input for row in rows}
    _refuse_missing(item_ids, found)
    return [_resolved(msgspec.convert(found[item_id], InputItem, strict=False), objects) for item_id in item_ids]


async def hold(tx: AsyncConnection, principal: Principal, item_ids: Sequence[str]) -> None:
    """Keep items that `load_inputs` gave from being deleted until `tx` ends, so that what it writes may refer to them.

    Raises:
        NotFound: one was deleted since.
    """
    query = sa.select(items.c.id).where(owned(items, principal), _among(item_ids)).order_by(items.c.id)
    rows = await tx.execute(query.with_for_update(read=True, key_share=True))
    _refuse_missing(item_ids, set(rows.scalars()))


def _refuse_missing(item_ids: Sequence[str], found: Container[str]) -> None:
    faults = [
        Fault(pointer=f"/inputs/{place}", message=f"There is no item {item_id!r}.", code="not_found")
        for place, item_id in enumerate(item_ids)
        if item_id not in found
    ]
    if faults:
        raise NotFound(" ".join(fault.message for fault in faults[:5]), errors=faults)


def _resolved(item: InputItem, objects: Objects) -> InputItem:
    assets = tuple(msgspec.structs.replace(asset, href=objects.href(asset.href)) for asset in item.assets)
    return msgspec.structs.replace(item, assets=assets)


def _among(item_ids: Sequence[str]) -> sa.ColumnElement[bool]:
    return items.c.id.in_(sorted(set(item_ids)))


async def get(tx: AsyncConnection, principal: Principal, item_id: str) -> sa.Row[Any]:
    """The row of an item.

    Raises:
        NotFound: unknown or somebody else's.
    """
    return await _one(tx, item_id, owned(items, principal))


async def get_signed(tx: AsyncConnection, item_id: str) -> sa.Row[Any]:
    """The row of an item whose id came from a signature of ours, which is all the authority there is.

    Raises:
        NotFound: there is none.
    """
    return await _one(tx, item_id)


async def _one(
    tx: AsyncConnection, item_id: str, *conditions: sa.ColumnElement[bool], locks: bool = False
) -> sa.Row[Any]:
    query = sa.select(items).where(items.c.id == item_id, *conditions)
    row = (await tx.execute(query.with_for_update() if locks else query)).first()
    if row is None:
        raise NotFound(f"There is no item {item_id!r}.")
    return row


async def delete(tx: AsyncConnection, principal: Principal, item_id: str, now: datetime) -> None:
    """Delete an item, give its bytes back to the quota, and have its objects deleted after the commit.

    Raises:
        NotFound: unknown or somebody else's.
        Conflict: a job that has not ended reads it.
    """
    row = await _one(tx, item_id, owned(items, principal), locks=True)  # against jobs that are just being written
    reader = await _open_reader(tx, row.org_id, item_id)
    if reader is not None:
        raise Conflict(f"Job {reader} still reads item {item_id}. Cancel the job or wait for its end.")
    # Conditional, so that of two requests at once one takes the bytes off and the other finds nothing.
    gone = await tx.execute(sa.delete(items).where(items.c.id == item_id, items.c.org_id == row.org_id))
    if not gone.rowcount:
        raise NotFound(f"There is no item {item_id!r}.")
    await tx.execute(
        sa.update(organisations)
        .where(organisations.c.id == row.org_id)
        .values(used_bytes=organisations.c.used_bytes - row.size_bytes)
    )
    keys = [asset["href"] for asset in row.document["assets"].values()]
    await delete_later(tx, row.org_id, now=now, keys=keys)


async def _open_reader(tx: AsyncConnection, org_id: str, item_id: str) -> str | None:
    """A job that may still read the item."""
    if tx.dialect.name == "sqlite":
        entry = sa.func.json_each(jobs.c.inputs).table_valued("value")
        reads = sa.exists().select_from(entry).where(sa.func.json_extract(entry.c.value, "$.id") == item_id)
    else:
        reads = sa.cast(jobs.c.inputs, JSONB).contains([{"id": item_id}])
    query = sa.select(jobs.c.id).where(jobs.c.state.in_(JOB_STATES_OPEN), jobs.c.org_id == org_id, reads)
    return (await tx.execute(query.limit(1))).scalar_one_or_none()


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What to look for; conditions hold together."""

    project_id: str | None = None
    bbox: tuple[float, ...] | None = None
    datetime: str | None = None
    ids: tuple[str, ...] | None = None


class Page(NamedTuple):
    """Documents, newest item first, and the id after which the next page starts, if there is one."""

    documents: list[dict[str, Any]]
    next_id: str | None


async def search(
    tx: AsyncConnection, db: Database, principal: Principal, query: Query, *, limit: int, before_id: str | None = None
) -> Page:
    """Items of the principal that meet `query`, newest first.

    A footprint that only touches the bbox meets it. An item without a known time never meets a condition on time.

    Raises:
        InvalidInput: bbox or datetime are malformed; the fault says where.
    """
    boxes = None if query.bbox is None else parse_bbox(query.bbox)
    interval = None if query.datetime is None else parse_interval(query.datetime)
    statement = select(db, principal, query, boxes, interval)
    area = None if boxes is None else shapely.union_all([shapely.box(*box) for box in boxes])
    if area is not None:
        shapely.prepare(area)
    found: list[dict[str, Any]] = []
    while True:
        rows_max = max(_SCAN_ROWS if area is not None else 0, limit + 1)
        page = statement if before_id is None else statement.where(items.c.id < before_id)
        rows = (await tx.execute(page.order_by(items.c.id.desc()).limit(rows_max))).all()
        for row in rows:
            if _meets(row.document, area, interval):
                if len(found) == limit:
                    return Page(found, found[-1]["id"])
                found.append(row.document)
        if len(rows) < rows_max:
            return Page(found, None)
        before_id = rows[-1].id


def select(
    db: Database,
    principal: Principal,
    query: Query,
    boxes: Sequence[stac.BBox] | None,
    interval: tuple[datetime | None, datetime | None] | None,
) -> sa.Select[*tuple[Any, ...]]:
    """Rows that may meet `query`, by index; `search` looks at their documents."""
    statement = sa.select(items.c.id, items.c.document).where(owned(items, principal))
    if query.project_id is not None:
        statement = statement.where(items.c.project_id == query.project_id)
    if query.ids is not None:
        statement = statement.where(_among(query.ids))
    if boxes is not None:
        statement = statement.where(items.c.id.in_(_near(db, boxes)))
    if interval is not None:
        start, end = interval
        within = [] if start is None else [items.c.at >= start]
        within += [] if end is None else [items.c.at <= end]
        statement = statement.where(sa.or_(sa.and_(*within), items.c.at.is_(None)))
    return statement


def _near(db: Database, boxes: Sequence[stac.BBox]) -> sa.Select[Any]:
    """Ids of items one of whose boxes meets one of `boxes`, through the engine's spatial index."""
    if db.is_sqlite:
        r = rtree.c
        overlaps = [
            sa.and_(r.west <= east, r.east >= west, r.south <= north, r.north >= south)
            for west, south, east, north in boxes
        ]
        meeting = sa.select(r.id).where(overlaps[0])
        if len(overlaps) > 1:  # an OR over a virtual table scans it; a union asks its index twice
            every = sa.union_all(*(sa.select(r.id).where(overlap) for overlap in overlaps)).subquery()
            meeting = sa.select(every.c.id)
        return sa.select(item_boxes.c.item_id).where(item_boxes.c.id.in_(meeting))
    c = item_boxes.c
    own = sa.func.box(sa.func.point(c.west, c.south), sa.func.point(c.east, c.north))
    asked = [
        own.bool_op("&&")(sa.func.box(sa.func.point(box[0], box[1]), sa.func.point(box[2], box[3]))) for box in boxes
    ]
    return sa.select(c.item_id).where(sa.or_(*asked))


def _meets(
    document: Mapping[str, Any],
    area: BaseGeometry | None,
    interval: tuple[datetime | None, datetime | None] | None,
) -> bool:
    if area is not None and not area.intersects(shape(document["geometry"])):
        return False
    properties = document["properties"]
    if interval is None or properties["datetime"] is not None:
        return True
    if properties["start_datetime"] == stac.UNDATED_SINCE:
        return False
    start, end = interval
    return (end is None or datetime.fromisoformat(properties["start_datetime"]) <= end) and (
        start is None or datetime.fromisoformat(properties["end_datetime"]) >= start
    )


def parse_bbox(numbers: Sequence[float]) -> tuple[stac.BBox, ...]:
    """A GeoJSON bbox as one box, or two where it crosses the antimeridian; heights of a 6-number bbox do not select.

    Raises:
        InvalidInput: not 4 or 6 numbers, south above north, or outside the Earth.
    """
    if len(numbers) not in {4, 6}:
        raise _refuse("/bbox", "4 or 6 numbers: west, south, [low,] east, north[, high]", f"{len(numbers)} numbers")
    half = len(numbers) // 2
    west, south, east, north = (float(value) for value in (*numbers[:2], *numbers[half : half + 2]))
    if not (-180 <= west <= 180 and -180 <= east <= 180):  # a NaN fails every comparison
        raise _refuse("/bbox", "longitudes from −180 to 180", f"{west:g} and {east:g}")
    if not -90 <= south <= north <= 90:
        raise _refuse("/bbox", "latitudes from −90 to 90, the southern one first", f"{south:g} and {north:g}")
    if half == 3 and not numbers[2] <= numbers[5]:
        raise _refuse("/bbox", "heights with the lower one first", f"{numbers[2]:g} and {numbers[5]:g}")
    return stac.plain_boxes((west, south, east, north))


def parse_interval(text: str) -> tuple[datetime | None, datetime | None]:
    """An instant, or `start/end` with `..` or nothing for an open end; both ends are part of it.

    Raises:
        InvalidInput: not RFC 3339, open at both ends, or backwards.
    """
    parts = text.split("/")
    if len(parts) == 1:
        moment = _instant(text)
        return moment, moment
    if len(parts) != 2:
        raise _refuse("/datetime", "an instant, or start/end", repr(text))
    start, end = (None if part in {"", ".."} else _instant(part) for part in parts)
    if start is None and end is None:
        raise _refuse("/datetime", "an interval with at least one end", repr(text))
    if start is not None and end is not None and start > end:
        raise _refuse("/datetime", "an interval whose start is not after its end", repr(text))
    return start, end


def _instant(text: str) -> datetime:
    match = _INSTANT.match(text)
    if match is None:
        raise _refuse("/datetime", "RFC 3339 with a time zone, such as 2024-05-01T00:00:00Z", repr(text))
    day, clock, fraction, zone = match.groups()
    leap = timedelta(seconds=1) if clock.endswith(":60") else timedelta(0)
    clock = clock.replace(":60", ":59") if leap else clock
    try:
        moment = datetime.fromisoformat(
            f"{day}T{clock}{(fraction or '.0')[:7].ljust(7, '0')}{'+00:00' if zone in 'Zz' else zone}"
        )
        return moment.astimezone(UTC) + leap
    except (ValueError, OverflowError) as error:
        raise _refuse("/datetime", f"a moment that exists ({error})", repr(text)) from error


def _refuse(pointer: str, expected: str, received: str) -> InvalidInput:
    message = f"{pointer} must be {expected}; got {received}."
    return InvalidInput(message, errors=[Fault(pointer=pointer, message=message, expected=expected, received=received)])
