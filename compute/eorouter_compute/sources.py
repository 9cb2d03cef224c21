"""The bytes of a source before anything decodes them: how many, of what kind of file, and what is wanting."""

from eorouter_compute import tiff
from eorouter_compute.attempt import local_path, read_object, remote_store
from eorouter_compute.errors import SourceUnreadable

_TIFF_MAGIC = frozenset({b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"})
_JP2_MAGIC = frozenset({b"\0\0\0\x0cjP  \r\n\x87\n"})
_KINDS = (
    (b"\x89PNG", "a PNG picture without a place on Earth"),
    (b"\xff\xd8\xff", "a JPEG picture without a place on Earth"),
    (b"GIF8", "a GIF picture"),
    (b"CDF", "a netCDF file"),
    (b"\x89HDF", "an HDF5 or netCDF-4 file"),
    (b"GRIB", "a GRIB file"),
    (b"NITF", "an NITF file"),
    (b"EHFA_HEADER_TAG", "an Erdas Imagine file"),
    (b"%PDF", "a PDF document"),
    (b"<VRTDataset", "a virtual raster that points to other files"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
)


def start_of(href: str, length: int = 64) -> bytes:
    """The first bytes of an object, none where it cannot be read."""
    try:
        return read_object(href, 0, length)
    except Exception:  # noqa: BLE001 - any store's error: the caller is about to report the first one
        return b""


def kind(href: str) -> str | None:
    """What a file that is no raster of ours plainly is, by its first bytes."""
    start = start_of(href).lstrip(b"\xef\xbb\xbf \r\n\t")
    return next((kind for magic, kind in _KINDS if start.startswith(magic)), None)


def is_raster(href: str) -> bool:
    """Whether the file starts like a TIFF or a JPEG 2000."""
    return start_of(href)[:4] in _TIFF_MAGIC or start_of(href)[:12] in _JP2_MAGIC


def object_size(href: str) -> int:
    """Bytes of the object at `href`.

    Raises:
        SourceUnreadable: there is no such object.
    """
    path = local_path(href)
    if path is not None:
        try:
            return path.stat().st_size
        except OSError as error:
            raise SourceUnreadable(f"{href} does not exist.", source=href) from error
    import obstore

    store, key = remote_store(href)
    try:
        return obstore.head(store, key)["size"]
    except Exception as error:
        raise SourceUnreadable(f"{href} could not be found: {error}", source=href) from error


def truncated_at(href: str) -> str:
    """What a TIFF's directories promise beyond the end of the file, or an empty string."""
    if start_of(href)[:4] not in _TIFF_MAGIC:
        return ""
    try:
        size = object_size(href)
        found = tiff.directories(lambda start, stop: read_object(href, start, stop), size)
    except tiff.Malformed as error:
        return str(error)
    except SourceUnreadable:
        return ""
    return tiff.ends_early(found, size)


def layout_faults(href: str) -> list[str]:
    """Why the file is not a cloud-optimised GeoTIFF that can be served as it is; empty when it is one."""
    size = object_size(href)
    try:
        found = tiff.directories(lambda start, stop: read_object(href, start, stop), size)
    except tiff.Malformed as error:
        return [str(error)]
    early = tiff.ends_early(found, size)
    return tiff.layout_faults(found, read_object(href, 0, min(512, size))) + ([early] if early else [])
