"""Writing cloud-optimised GeoTIFFs: of a whole scene, and of an area cut out of one."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from benchmarks import data
from benchmarks.bounds import Read
from benchmarks.harness import Answer, Row
from benchmarks.rows.looking import cuts, not_larger, pixels, same_pixels

Area = tuple[Path, dict[str, Any]]
CACHE_BYTES = 1 << 30
"""In bytes: rasterio hands the number on as it is, and GDAL takes small ones as bytes, too."""


def plain_scene(folder: Path, side: int) -> Path:
    """A tiled GeoTIFF without overviews."""
    return data.scene(folder, side, "plain", 3)


def cog_ours(place: Path, folder: Path) -> Path:
    """The method with its defaults."""
    from benchmarks.ours import item, output, run

    return output(run({"method": "cog"}, [item(place)], folder))


def cog_rio_cogeo(place: Path, folder: Path) -> Path:
    """rio-cogeo as its command line runs it: through a temporary copy in memory."""
    from rio_cogeo.cogeo import cog_translate
    from rio_cogeo.profiles import cog_profiles

    cog_translate(
        str(place), folder / "out.tif", cog_profiles.get("deflate") | {"predictor": 2}, quiet=True,
        config={"GDAL_NUM_THREADS": 2, "GDAL_CACHEMAX": CACHE_BYTES}, overview_resampling="average", in_memory=True,
    )  # fmt: skip
    return folder / "out.tif"


def cog_gdal(place: Path, folder: Path) -> Path:
    """GDAL's COG driver."""
    copy_cog(place, folder / "out.tif")
    return folder / "out.tif"


def copy_cog(source: Any, target: Path, *, predictor: int = 2) -> None:
    """GDAL's COG driver at its usual level of DEFLATE, two threads for decoding, overviews and encoding."""
    from rasterio.shutil import copy

    with rasterio.Env(GDAL_NUM_THREADS=2, GDAL_CACHEMAX=CACHE_BYTES):
        copy(
            source, target, driver="COG", compress="DEFLATE", predictor=predictor, num_threads=2,
            overview_resampling="average", bigtiff="IF_SAFER",
        )  # fmt: skip


def same_and_not_larger(ours: Answer, theirs: Answer) -> None:
    """Equal pixels, as many overviews within one, and at most 2 % more bytes."""
    same_pixels(ours, theirs)
    assert abs(len(ours["overviews"]) - len(theirs["overviews"])) <= 1
    not_larger(ours, theirs)


def clip_inputs(folder: Path, side: int) -> Area:
    """A one-band COG and an area over a twelfth of it (1,000 km² of a tile), not along its pixels."""
    corners = np.array([[0.366, 0.547], [0.639, 0.465], [0.575, 0.192], [0.302, 0.264], [0.366, 0.547]])
    ring = data.ORIGIN + corners * [1, -1] * side * data.PIXEL_M
    return data.scene(folder, side, "clip", 2, is_cog=True), {"type": "Polygon", "coordinates": [ring.tolist()]}


def clip_reads(inputs: Area) -> list[Read]:
    """The tiles that the area's bounds touch."""
    place, area = inputs
    with rasterio.open(place) as source:
        ring = np.array(area["coordinates"][0])
        cols, rows = (ring - [source.transform.c, source.transform.f]).T / [[data.PIXEL_M], [-data.PIXEL_M]]
    top, left = int(rows.min()), int(cols.min())
    return [Read(path=place, window=(top, left, int(np.ceil(rows.max())) - top, int(np.ceil(cols.max())) - left))]


def clip_ours(inputs: Area, folder: Path) -> Path:
    """COG to COG."""
    from benchmarks.ours import item, output, run

    place, area = inputs
    return output(run({"method": "clip", "aoi": area, "crs": data.CRS}, [item(place)], folder))


def clip_rasterio(inputs: Area, folder: Path) -> Path:
    """rasterio.mask with a reader of two threads, then rio-cogeo."""
    import rasterio.mask

    place, area = inputs
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), rasterio.open(place, num_threads=2) as source:
        cut, transform = rasterio.mask.mask(source, [area], crop=True)
        profile = source.profile | {"height": cut.shape[1], "width": cut.shape[2], "transform": transform}
    return _cogeo(cut, profile, folder)


def clip_rioxarray(inputs: Area, folder: Path) -> Path:
    """rioxarray, reading the area's bounds only, then rio-cogeo."""
    import rioxarray

    place, area = inputs
    with rioxarray.open_rasterio(place, num_threads=2) as source:
        cut = source.rio.clip([area], from_disk=True)
        profile = {
            "crs": cut.rio.crs, "transform": cut.rio.transform(), "height": cut.shape[1], "width": cut.shape[2],
            "count": 1, "dtype": "uint16", "nodata": 0,
        }  # fmt: skip
        return _cogeo(cut.to_numpy(), profile, folder)


def _cogeo(cut: np.ndarray, profile: dict[str, Any], folder: Path) -> Path:
    from rio_cogeo.cogeo import cog_translate
    from rio_cogeo.profiles import cog_profiles

    plain = profile | {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": None}
    plain.pop("predictor", None)
    with rasterio.MemoryFile() as memory:
        with memory.open(**plain) as target:
            target.write(cut)
        with memory.open() as source:
            cog_translate(
                source, folder / "out.tif", cog_profiles.get("deflate") | {"predictor": 2}, quiet=True, nodata=0,
                config={"GDAL_NUM_THREADS": 2, "GDAL_CACHEMAX": CACHE_BYTES}, overview_resampling="average",
                in_memory=True,
            )  # fmt: skip
    return folder / "out.tif"


def _cog(peer: str, floor: float, theirs: Any, needs: tuple[str, ...] = ()) -> Row:
    return Row(
        id="cog", peer=peer, floor=floor, pixels=pixels, prepare=plain_scene, ours=cog_ours, theirs=theirs, look=cuts,
        agree=same_and_not_larger, reads=lambda place: [Read(path=place)], method="cog", needs=needs,
    )  # fmt: skip


def _clip(peer: str, theirs: Any, needs: tuple[str, ...]) -> Row:
    return Row(
        id="clip-cog", peer=peer, floor=4.0, pixels=lambda side: side * side // 12, prepare=clip_inputs,
        ours=clip_ours, theirs=theirs, look=cuts, agree=same_pixels, reads=clip_reads, method="clip", needs=needs,
    )  # fmt: skip


ROWS = [
    _cog("rio-cogeo (2 threads, in memory)", 4.5, cog_rio_cogeo, ("rio_cogeo",)),
    _cog("GDAL COG driver (2 threads)", 2.5, cog_gdal),
    _clip("rasterio.mask + rio-cogeo (2 threads)", clip_rasterio, ("rio_cogeo",)),
    _clip("rioxarray + rio-cogeo (2 threads)", clip_rioxarray, ("rio_cogeo", "rioxarray")),
]
