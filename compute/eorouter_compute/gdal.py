"""GDAL as our process has it: which drivers are registered, once, and with which options files are opened."""

import os
from typing import Any
from urllib.parse import urlsplit

import rasterio

# Drivers that are handed a name and fetch something else. GDAL reads the list when it registers its drivers, which
# happens once, just below; the variable is put back because vectors are read with a GDAL of their own.
_SKIPPED = (
    "VRT,GTI,WMS,WCS,WMTS,HTTP,STACIT,STACTA,EEDA,EEDAI,DAAS,PLMOSAIC,MRF,DERIVED,KMLSUPEROVERLAY,"
    "SAFE,SENTINEL2,DIMAP,TIL,TSX,RS2,ISCE,PDF,Zarr,Rasterlite,netCDF,HDF5,HDF5Image"
)
_skipped_before = os.environ.get("GDAL_SKIP")
os.environ["GDAL_SKIP"] = _SKIPPED
with rasterio.Env():
    pass  # registers the drivers
if _skipped_before is None:
    del os.environ["GDAL_SKIP"]
else:
    os.environ["GDAL_SKIP"] = _skipped_before

OPTIONS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_CACHEMAX": 268_435_456,  # in bytes: rasterio hands small numbers on as bytes, GDAL takes them as megabytes
    "GDAL_NUM_THREADS": 1,
    "GDAL_INGESTED_BYTES_AT_OPEN": 32768,
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_HTTP_VERSION": "2",
    "GDAL_HTTP_MAX_RETRY": 4,
    "GDAL_HTTP_RETRY_DELAY": 0.5,
    "GDAL_HTTP_TIMEOUT": 60,
    "CPL_VSIL_CURL_CACHE_SIZE": 134_217_728,
    "CPL_VSIL_CURL_USE_HEAD": "NO",
    "VSI_CACHE": True,
    "VSI_CACHE_SIZE": 5_000_000,
    "GTIFF_REPORT_COMPD_CS": "YES",
}


def remote_options() -> dict[str, Any]:
    """`OPTIONS`, and where S3 is, for a store that is not Amazon's.

    Objects are written by a client that reads `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`; GDAL has names of its own.
    """
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not address or "AWS_S3_ENDPOINT" in os.environ:
        return OPTIONS
    parts = urlsplit(address)
    return OPTIONS | {
        "AWS_S3_ENDPOINT": parts.netloc + parts.path.rstrip("/"),
        "AWS_HTTPS": "YES" if parts.scheme == "https" else "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }
