"""Reprojection of a UTM scene: pixels alone, in memory, and from COG to COG."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import rasterio
from affine import Affine

from benchmarks import data
from benchmarks.bounds import Read
from benchmarks.harness import THREADS, Answer, Row
from benchmarks.rows.cogs import CACHE_BYTES, copy_cog
from benchmarks.rows.looking import cuts, pixels

WARP_MEMORY_MB = 512
TOLERANCE_PX = 0.125


class Scene(msgspec.Struct, frozen=True):
    """A raster, the grid that GDAL suggests for it in another CRS, and its pixels once they are in memory."""

    place: Path
    crs: str
    transform: Affine
    shape: tuple[int, int]
    pixels: dict[str, np.ndarray]

    @property
    def loaded(self) -> np.ndarray:
        """The pixels (y, x), read once per process."""
        if "pixels" not in self.pixels:
            with rasterio.open(self.place, num_threads=2) as source:
                self.pixels["pixels"] = source.read(1)
        return self.pixels["pixels"]


def scene_to(crs: str, *, in_memory: bool) -> Callable[[Path, int], Scene]:
    """Prepare a scene that goes to `crs`."""

    def prepare(folder: Path, side: int) -> Scene:
        from rasterio.warp import calculate_default_transform

        place = data.scene(folder, side, "warp", 5, is_cog=True)
        # Asked for before our modules are imported: they leave GDAL without the driver that this needs.
        with rasterio.open(place) as source:
            transform, width, height = calculate_default_transform(
                source.crs, crs, source.width, source.height, *source.bounds
            )
        scene = Scene(place, crs, transform, (int(height or 0), int(width or 0)), {})
        if in_memory:
            assert scene.loaded.size
        return scene

    return prepare


def gdal_array(resampling: str) -> Callable[[Scene, Path], np.ndarray]:
    """GDAL's warper on an array with two threads, its usual error tolerance and as much memory as it takes."""

    def theirs(scene: Scene, _: Path) -> np.ndarray:
        from rasterio.enums import Resampling
        from rasterio.warp import reproject

        out = np.zeros(scene.shape, np.uint16)
        with rasterio.open(scene.place) as source:
            frame = {"src_transform": source.transform, "src_crs": source.crs}
        reproject(
            scene.loaded, out, **frame, dst_transform=scene.transform, dst_crs=scene.crs, src_nodata=0, dst_nodata=0,
            resampling=Resampling[resampling], num_threads=THREADS, warp_mem_limit=WARP_MEMORY_MB,
            tolerance=TOLERANCE_PX,
        )  # fmt: skip
        return out

    return theirs


def gdal_cog(scene: Scene, folder: Path) -> Path:
    """Read and warp with two threads in one pass, then GDAL's COG driver from memory with two threads."""
    from rasterio.enums import Resampling
    from rasterio.warp import reproject

    height, width = scene.shape
    profile = {
        "driver": "GTiff", "width": width, "height": height, "count": 1, "dtype": "uint16", "nodata": 0,
        "crs": scene.crs, "transform": scene.transform, "tiled": True, "blockxsize": 512, "blockysize": 512,
        "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    with rasterio.Env(GDAL_NUM_THREADS=THREADS, GDAL_CACHEMAX=CACHE_BYTES), rasterio.MemoryFile() as memory:
        with rasterio.open(scene.place, num_threads=2) as source, memory.open(**profile) as target:
            reproject(
                rasterio.band(source, 1), rasterio.band(target, 1), resampling=Resampling.bilinear,
                num_threads=THREADS, warp_mem_limit=WARP_MEMORY_MB, tolerance=TOLERANCE_PX,
            )  # fmt: skip
        with memory.open() as source:
            copy_cog(source, folder / "out.tif")
    return folder / "out.tif"


def look(made: np.ndarray, _: Scene) -> Answer:
    """A twelfth of the pixels, in whole rows."""
    return {"pixels": made[::12]}


def near(ours: Answer, theirs: Answer) -> None:
    """As near as an error of an eighth of a pixel allows, and no data in the same places but at edges."""
    assert ours["pixels"].shape == theirs["pixels"].shape
    _near(ours["pixels"], theirs["pixels"])


def near_cuts(ours: Answer, theirs: Answer) -> None:
    """The same grid, and pixels as near as the tolerance allows."""
    np.testing.assert_array_equal(ours["shape"], theirs["shape"])
    np.testing.assert_allclose(ours["transform"], theirs["transform"], rtol=1e-9)
    for name in (name for name in ours if name.startswith("pixels_")):
        _near(ours[name], theirs[name])


def _near(ours: np.ndarray, theirs: np.ndarray) -> None:
    differs = (ours != 0) != (theirs != 0)
    assert differs.mean() < 2e-3, f"{differs.mean():.2%} of the pixels have data on one side only"
    both = (ours != 0) & (theirs != 0)
    if both.any():
        apart = np.abs(ours[both].astype(float) - theirs[both])
        # Edges of fields step by 1,850 on average, so an eighth of a pixel may move a pixel on an edge by some hundred.
        assert np.median(apart) <= 8, f"the median difference is {np.median(apart)}"
        assert apart.mean() <= 40, f"the mean difference is {apart.mean():.1f}"


def ours_array(resampling: str) -> Callable[[Scene, Path], np.ndarray]:
    """The warp of every method, from pixels in memory, on two threads; nodata is looked for, as GDAL does."""

    def ours(scene: Scene, _: Path) -> np.ndarray:
        from eorouter_compute import warp
        from eorouter_compute.grid import Grid
        from eorouter_kernels import blocks

        with rasterio.open(scene.place) as source:
            here = Grid(crs=data.CRS, transform=tuple(source.transform)[:6], shape=source.shape)
        there = Grid(crs=scene.crs, transform=tuple(scene.transform)[:6], shape=scene.shape)
        pixels = scene.loaded[None]
        # As `raster` does it: most scenes are whole, and to see that is cheaper than to write it down.
        is_whole = blocks.first_missing(pixels, pixels.dtype.type(0)) < 0
        block = warp.in_memory(
            pixels, None if is_whole else pixels != 0, here, there, resampling=resampling, tolerance_px=TOLERANCE_PX,
            threads=THREADS,
        )  # fmt: skip
        return block.pixels[0]

    return ours


def ours_cog(scene: Scene, folder: Path) -> Path:
    """The method, onto the grid that GDAL suggests."""
    from benchmarks.ours import item, output, run

    transform, (height, width) = scene.transform, scene.shape
    bounds = [transform.c, transform.f + height * transform.e, transform.c + width * transform.a, transform.f]
    grid = {"crs": scene.crs, "resolution": [transform.a, -transform.e], "bounds": bounds, "snap": False}
    task = {"method": "reproject", "grid": grid, "resampling": "bilinear", "tolerance_px": TOLERANCE_PX}
    return output(run(task, [item(scene.place)], folder))


def _array(resampling: str, crs: str) -> Row:
    return Row(
        id=f"reproject-{resampling}", peer=f"GDAL warp to {crs} (2 threads, 0.125 px)", floor=5.0, pixels=pixels,
        prepare=scene_to(crs, in_memory=True), ours=ours_array(resampling), theirs=gdal_array(resampling), look=look,
        agree=near, reads=lambda _: [], arrays=lambda scene, made: [scene.loaded, made], method="reproject",
    )  # fmt: skip


ROWS = [
    *(_array(resampling, crs) for resampling in ("bilinear", "cubic") for crs in ("EPSG:4326", "EPSG:3857")),
    Row(
        id="reproject-cog", peer="GDAL warp to EPSG:4326 (2 threads, 0.125 px) + COG driver", floor=4.0, pixels=pixels,
        prepare=scene_to("EPSG:4326", in_memory=False), ours=ours_cog, theirs=gdal_cog, look=cuts, agree=near_cuts,
        reads=lambda scene: [Read(path=scene.place)], method="reproject",
    ),
]  # fmt: skip
