"""A job whose workers read their inputs from an object store and write their answers to it: S3 on loopback."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from eorouter_compute.testing import asymmetric, write_raster


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_reads_and_writes_an_object_store(s3, start, tmp_path: Path) -> None:
    pixels = asymmetric((1400, 1300), bands=2, noise=0.2)
    write_raster(tmp_path / "scene.tif", pixels, names=["red", "nir"])
    folder = tmp_path / "service"
    folder.mkdir()
    with start(folder, workers=2, objects_url="s3://rasters/products") as service, service.client() as client:
        bands = [{"name": name, "common_name": name} for name in ("red", "nir")]
        upload = client.uploads.upload(tmp_path / "scene.tif", project_id=service.project_id, bands=bands)
        s3.asked.clear()
        s3.faults = [503, 503]  # a store that is busy for a moment fails nobody's job
        outputs = [{"name": "ndvi", "expression": "(nir - red) / (nir + red)"}]
        job = client.execute(upload["item_id"], method="band_math", outputs=outputs).wait(timeout_s=400)
        assert job.state == "completed"
        assert s3.faults == []
        methods = {method for method, path, _ in s3.asked if "/rasters/products/" in path}
        assert {"GET", "PUT"} <= methods
        # Pixels were asked for by range; what was written is in the store and nowhere on this machine.
        assert any("/rasters/products/" in path and span for method, path, span in s3.asked if method == "GET")
        assert not list(folder.rglob("*.tif"))
        item = client.items.get(job.item_ids[0])
        key = next(key for key, asset in item["assets"].items() if asset["type"].startswith("image/tiff"))
        path = client.items.download(item["id"], key, to=tmp_path / "ndvi.tif")
    with rasterio.open(path) as found:
        red, nir = pixels.astype(np.float64)
        np.testing.assert_allclose(found.read(1), (nir - red) / (nir + red), rtol=1e-6, atol=1e-7)
