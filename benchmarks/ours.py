"""Our side of the rows: items of local files, and a method run on two threads as a cluster's workers would run it.

Imported by our side only: it keeps GDAL drivers away that the peers may want.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import THREADS
from eorouter_compute import method, raster
from eorouter_compute.attempt import local_path
from eorouter_compute.method import InputItem, RasterAsset, Result
from eorouter_compute.testing import run_local


def run(task: dict[str, Any], inputs: list[InputItem], folder: Path, *, threads: int = THREADS) -> Result:
    """Plan, run the shards, merge: what the dispatcher has workers do, without the dispatcher."""
    params = msgspec.convert(task, method.get(task["method"]).params)
    return run_local(params, inputs, folder, threads=threads)


def output(result: Result, key: str = "data") -> Path:
    """The file of one asset of the first item."""
    asset = next(asset for asset in result.items[0].assets if asset.key == key)
    path = local_path(asset.object.href)
    assert path is not None
    return path


def asset(path: Path, *names: str, key: str = "data", scale: float = 1.0) -> RasterAsset:
    """A raster file as an asset, its bands renamed; the names are common names, too."""
    found = raster.describe(path.as_uri())
    bands = found.bands
    if names:
        bands = tuple(
            msgspec.structs.replace(band, name=name, common_name=None if name == "scl" else name, scale=scale)
            for band, name in zip(bands, names, strict=True)
        )
    return msgspec.structs.replace(found, key=key, bands=bands)


def item(path: Path, *names: str, id: str = "scene", at: datetime | None = None) -> InputItem:  # noqa: A002
    """The item of one raster."""
    return InputItem(id=id, assets=(asset(path, *names),), at=at)
