"""What a file says about its pixels beside them (colours, colour table, tags), carried over to a file made of them.

Only headers tell it, so it is asked for on workers, not in plans. Statistics are left behind: they are computed anew.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from eorouter_compute import raster
from eorouter_compute.cogfile import CogSpec
from eorouter_compute.method import Band, RasterAsset

_CLASS_NAMES = re.compile(r"^(scl|fmask|qa|qa_.*|.*_qa|.*class(es|ification)?|land_?cover)$", re.IGNORECASE)
_DERIVED = ("STATISTICS_", "OVR_RESAMPLING_ALG")


def carried(spec: CogSpec, bands: Sequence[tuple[RasterAsset, Band]]) -> CogSpec:
    """`spec` with what the files of `bands`, its bands in order, say about them.

    Tags of the file are kept where all files agree. Colours are kept where one file has them and no two bands share
    one; a colour table where there is one band.

    Raises:
        SourceFault: a file cannot be opened.
    """
    heads = {asset.key: raster.inspect(asset.href) for asset, _ in bands}
    first = heads[bands[0][0].key]
    colors = [heads[asset.key].color_interpretation[band.index - 1].lower() for asset, band in bands]
    colors = ["undefined" if color in {"palette", "alpha"} else color for color in colors]
    if len(heads) > 1 or len(set(colors) - {"undefined"}) < len([c for c in colors if c != "undefined"]):
        colors = []
    shared = [_kept(head.tags) for head in heads.values()]
    return msgspec.structs.replace(
        spec,
        color_interpretation=tuple(colors),
        color_table=first.color_table if len(bands) == 1 else {},
        tags={key: text for key, text in shared[0].items() if all(each.get(key) == text for each in shared)},
        band_tags=tuple(_kept(heads[asset.key].band_tags[band.index - 1]) for asset, band in bands),
    )


def are_classes(spec: CogSpec, properties: dict[str, Any]) -> bool:
    """Whether the pixels of a `carried` specification are classes: by colour table, item, tag, or every band's name."""
    tags = spec.band_tags or ({},) * len(spec.bands)
    return (
        bool(spec.color_table)
        or "classification:classes" in properties
        or all(
            _CLASS_NAMES.match(band.common_name or band.name) or own.get("LAYER_TYPE") == "thematic"
            for band, own in zip(spec.bands, tags, strict=True)
        )
    )


def _kept(tags: dict[str, str]) -> dict[str, str]:
    """Tags without those that are computed anew."""
    return {key: tags[key] for key in sorted(tags) if not key.startswith(_DERIVED)}
