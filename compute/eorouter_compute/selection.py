"""Which assets and bands of an item a method works on, and what a file needs to hold them together."""

from collections.abc import Sequence

import msgspec

from eorouter_compute.errors import BandNotFound, InvalidParameter
from eorouter_compute.method import Band, InputItem, RasterAsset, by_asset


def chosen(
    item: InputItem, number: int, assets: Sequence[str], bands: Sequence[str]
) -> list[tuple[RasterAsset, list[Band]]]:
    """The raster assets called `assets` with the bands called `bands`, in that order; everything where none is named.

    Raises:
        InvalidParameter: input `number` has no such asset, or no raster at all.
        BandNotFound: it has no such band; names those it has.
    """
    rasters = item.rasters
    if assets:
        missing = set(assets) - {asset.key for asset in rasters}
        if missing:
            keys = ", ".join(asset.key for asset in rasters) or "none"
            raise InvalidParameter(
                f"Item {item.id} has no raster asset {', '.join(sorted(missing))}. It has: {keys}.", pointer="/assets"
            )
        rasters = tuple(asset for asset in rasters if asset.key in assets)
    if not rasters:
        raise InvalidParameter(f"Item {item.id} has no raster.", pointer=f"/inputs/{number}")
    if not bands:
        return [(asset, list(asset.bands)) for asset in rasters]
    return by_asset(named_bands(msgspec.structs.replace(item, assets=rasters), bands))


def named_bands(item: InputItem, bands: Sequence[str]) -> list[tuple[RasterAsset, Band]]:
    """The bands called `bands`, each with its asset.

    Raises:
        BandNotFound: the item has no such band; names those it has.
    """
    return [named_band(item, bands, place) for place in range(len(bands))]


def named_band(item: InputItem, bands: Sequence[str], place: int) -> tuple[RasterAsset, Band]:
    """The band called `bands[place]`, with its asset; raises as `named_bands`."""
    try:
        return item.band(bands[place])
    except BandNotFound as error:
        raise BandNotFound(error.message, pointer=f"/bands/{place}", **error.data) from None


def common_dtype(bands: Sequence[Band], where: str) -> str:
    """The pixel type that all the bands of one file have.

    Raises:
        InvalidParameter: they have several.
    """
    dtypes = {band.dtype for band in bands}
    if len(dtypes) > 1:
        raise InvalidParameter(
            f"The bands of {where} have different types ({', '.join(sorted(dtypes))}) and cannot share a file. "
            "Choose them one by one with `bands`.",
            pointer="/bands",
        )
    return bands[0].dtype
