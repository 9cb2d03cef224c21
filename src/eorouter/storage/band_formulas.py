"""Saved formulas: those of an organisation, and the templates that come with the service and never change.

A template's id sorts below every id that is given out, so one descending list holds both, own formulas first.
"""

from typing import Any

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from eorouter.errors import NotFound
from eorouter.storage.tables import band_formulas, owned
from eorouter.types import Principal


class Template(Struct, frozen=True, kw_only=True):
    """A formula everybody has; bands are written as common names."""

    id: str
    name: str
    description: str
    expression: str


def _template(name: str, expression: str, description: str) -> Template:
    return Template(id=f"frm_00_{name.lower()}", name=name, description=description, expression=expression)


TEMPLATES = {
    each.id: each
    for each in (
        _template("NDVI", "(nir - red) / (nir + red)", "Green vegetation. Rouse et al. 1974, NASA SP-351, 309–317."),
        _template(
            "EVI",
            "2.5 * (nir - red) / (nir + 6 * red - 7.5 * blue + 1)",
            "Vegetation where NDVI saturates; needs reflectance. Huete et al. 2002, Remote Sens. Environ. 83, 195–213.",
        ),
        _template(
            "SAVI",
            "1.5 * (nir - red) / (nir + red + 0.5)",
            "Sparse vegetation over soil, L = 0.5; needs reflectance. Huete 1988, Remote Sens. Environ. 25, 295–309.",
        ),
        _template(
            "MSAVI",
            "(2 * nir + 1 - sqrt((2 * nir + 1) ** 2 - 8 * (nir - red))) / 2",
            "As SAVI without its constant; needs reflectance. Qi et al. 1994, Remote Sens. Environ. 48, 119–126.",
        ),
        _template(
            "NDWI", "(green - nir) / (green + nir)", "Open water. McFeeters 1996, Int. J. Remote Sens. 17, 1425–1432."
        ),
        _template(
            "MNDWI",
            "(green - swir16) / (green + swir16)",
            "Open water beside buildings. Xu 2006, Int. J. Remote Sens. 27, 3025–3033.",
        ),
        _template(
            "NDMI", "(nir - swir16) / (nir + swir16)", "Water in leaves. Gao 1996, Remote Sens. Environ. 58, 257–266."
        ),
        _template(
            "NBR",
            "(nir - swir22) / (nir + swir22)",
            "Burnt ground. García and Caselles 1991, Geocarto Int. 6, 31–37.",
        ),
        _template(
            "NDSI",
            "(green - swir16) / (green + swir16)",
            "Snow and ice. Hall et al. 1995, Remote Sens. Environ. 54, 127–140.",
        ),
        _template(
            "NDBI",
            "(swir16 - nir) / (swir16 + nir)",
            "Built-up land. Zha et al. 2003, Int. J. Remote Sens. 24, 583–594.",
        ),
        _template("BRIGHTNESS", "(red + green + blue) / 3", "Brightness of the true-colour bands."),
        _template("VH_VV_DB", "10 * log10(vh / vv)", "Radar cross-ratio in decibels; from linear backscatter."),
    )
}


async def get(tx: AsyncConnection, principal: Principal, formula_id: str) -> Template | sa.Row[tuple[Any, ...]]:
    """A template, or the row of a formula of the principal's organisation.

    Raises:
        NotFound: unknown, or somebody else's.
    """
    if formula_id in TEMPLATES:
        return TEMPLATES[formula_id]
    query = sa.select(band_formulas).where(owned(band_formulas, principal), band_formulas.c.id == formula_id)
    row = (await tx.execute(query)).one_or_none()
    if row is None:
        raise NotFound(f"There is no formula {formula_id!r}.")
    return row
