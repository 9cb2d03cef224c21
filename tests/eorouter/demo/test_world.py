"""What the demonstration takes in: the generated landscape, and folders of other people's files."""

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rich.console import Console

from eorouter.demo import pictures, run, world
from eorouter.demo.telling import Bars


@pytest.fixture(scope="module")
def scenery(tmp_path_factory: pytest.TempPathFactory) -> world.World:
    return world.generate(tmp_path_factory.mktemp("world"), size_px=256)


def test_scenes_hide_exactly_what_their_classification_hides(scenery: world.World) -> None:
    for scene in scenery.scenes:
        classes = next((scene.path.parents[1] / "landscape").glob(f"*{scene.at:%Y%m%d}_scl.tif"))
        with rasterio.open(scene.path) as masked, rasterio.open(classes) as classification:
            hidden = np.isin(classification.read(1), world.HIDDEN_CLASSES)
            assert (masked.read_masks() == 0).all(axis=0).tolist() == hidden.tolist()
            assert masked.descriptions == ("B02", "B03", "B04", "B08")
        with rasterio.open(str(classes).replace("_scl", "_10m")) as original, rasterio.open(scene.path) as masked:
            assert (original.read()[:, ~hidden] == masked.read()[:, ~hidden]).all()
            assert (masked.scales, masked.offsets) == (original.scales, original.offsets)


def test_truth_of_a_day_lies_on_the_curve_where_nothing_bloomed_or_burnt(scenery: world.World) -> None:
    first = scenery.scenes[0].at
    assert first is not None
    assert scenery.curves
    for crop, curve in scenery.curves.items():
        assert curve[0][0] == first
        assert curve[0][1] == pytest.approx(scenery.truth[crop, first], abs=0.02)
        assert all(0 < value < 1 for _, value in curve)


def test_found_world_is_in_order_of_time_with_its_polygons(tmp_path: Path) -> None:
    for name in ("b_2021-07-01.tif", "a_20210802T1000.TIF", "undated.jp2", "notes.txt", ".hidden_20200101.tif"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "fields.geojson").write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {"ID": 1, "crop_type": "rye"},'
        ' "geometry": {"type": "Polygon", "coordinates": [[[0,0],[1,0],[1,1],[0,0]]]}}]}'
    )
    found = world.find(tmp_path)
    assert [scene.path.name for scene in found.scenes] == ["b_2021-07-01.tif", "a_20210802T1000.TIF", "undated.jp2"]
    assert (found.fields, found.zone_field, found.crop_field) == (tmp_path / "fields.geojson", "ID", "crop_type")
    assert not found.is_synthetic
    assert not found.truth


def test_bands_called_as_sentinel_2_does_get_their_common_names(tmp_path: Path) -> None:
    for name, bands in (("a", ("B04", "B08")), ("b", ("B04", "elevation"))):
        profile = {"driver": "GTiff", "width": 16, "height": 16, "count": 2, "dtype": "uint16", "crs": "EPSG:32632"}
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", transform=rasterio.Affine(10, 0, 0, 0, -10, 0), **profile
        ) as to:
            to.descriptions = bands
    assert [scene.bands for scene in world.find(tmp_path).scenes] == [[("B04", "red"), ("B08", "nir")], []]


def test_folder_without_rasters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no raster\. Expected files ending in \.tif"):
        world.find(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("S2A_MSIL2A_20230615T101031.tif", datetime(2023, 6, 15, 12, tzinfo=UTC)),
        ("2020-02-29.tif", datetime(2020, 2, 29, 12, tzinfo=UTC)),
        ("2021_02_29.tif", None),
        ("tile_120230615.tif", None),
        ("dem.tif", None),
    ],
)
def test_date_is_read_from_a_name_that_has_one(name: str, expected: datetime | None) -> None:
    assert world.date_of(name) == expected


def test_area_of_interest_lies_inside_its_box_and_is_closed() -> None:
    ring = np.array(run.area_of_interest((10.0, 45.0, 10.2, 45.1))["coordinates"][0])
    assert (ring[0] == ring[-1]).all()
    assert (ring.min(axis=0) > (10.0, 45.0)).all()
    assert (ring.max(axis=0) < (10.2, 45.1)).all()


def test_true_colour_keeps_the_order_of_brightness_and_leaves_the_unseen_clear() -> None:
    ramp = np.broadcast_to(np.linspace(0, 5000, 50, dtype=np.float32), (3, 20, 50))
    seen = np.ones((20, 50), bool)
    seen[:5] = False
    picture = pictures.true_colour(ramp, seen)
    assert (picture[:5, :, 3] == 0).all()
    assert (picture[5:, :, 3] == 255).all()
    assert (np.diff(picture[10, :, 0].astype(int)) >= 0).all()
    assert (picture[10, :, 0] == picture[10, :, 2]).all()
    assert not pictures.true_colour(ramp, np.zeros((20, 50), bool)).any()


def test_progress_in_a_log_is_one_line_at_the_end() -> None:
    text = io.StringIO()
    bars = Bars(Console(file=text, width=100), None)
    for done in (0, 1, 2, 4, 4, 4):
        bars.show("NDVI", done, 4, f"{done} of 4")
    assert text.getvalue() == "  100%  NDVI  4 of 4\n"
