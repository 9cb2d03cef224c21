"""An item that can be planned with; there is no file behind it."""

from datetime import UTC, datetime

from eorouter.storage import items
from eorouter.storage.database import Database
from eorouter.types import utc_now
from eorouter_compute.attempt import ObjectRef
from eorouter_compute.method import Band, OutputAsset, OutputItem, RasterAsset

SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
"""The degree north-east of the origin."""

_RASTER = RasterAsset(
    key="data", href="", crs="EPSG:4326", transform=(0.001, 0.0, 0.0, 0.0, -0.001, 1.0), shape=(1000, 1000),
    bands=(Band(name="B04", index=1, dtype="uint16", common_name="red", nodata=0.0),), block_shape=(256, 256),
)  # fmt: skip


async def shelve(db: Database, org_id: str, project_id: str, item_id: str) -> str:
    """Add an item of one band, a thousand pixels a side, over `SQUARE`; returns its id."""
    asset = OutputAsset(
        key="data", object=ObjectRef(href="x", size=10, sha256="0" * 64), media_type="image/tiff", roles=("data",),
        filename="data.tif", raster=_RASTER,
    )  # fmt: skip
    output = OutputItem(
        name="scene", assets=(asset,), footprint=SQUARE, bbox=(0, 0, 1, 1), at=datetime(2024, 5, 1, tzinfo=UTC)
    )
    async with db.write() as tx:
        await items.add(
            tx, db, org_id=org_id, project_id=project_id, item_id=item_id, output=output,
            keys={"data": f"{org_id}/{project_id}/items/{item_id}/data.tif"}, job_id=None, provenance={},
            now=utc_now(),
        )  # fmt: skip
    return item_id
