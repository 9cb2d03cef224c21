"""The report: one HTML page that needs nothing but itself, for light and dark screens, for paper and screen readers.

Whatever comes from outside (names of fields, files and crops, versions, notes) is text: it passes through `escape`.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from eorouter.demo import cartography, charts
from eorouter.demo.story import TRUSTED_VALID_FRACTION, Day, Reading, Story, Zone

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE_SHEET = Path(__file__).with_name("report.css")


def write(story: Story, path: Path) -> Path:
    """Write the report."""
    path.write_text(render(story), encoding="utf-8")
    return path


def render(story: Story) -> str:
    """The whole page."""
    sections = (
        _header(story),
        _maps(story),
        _days(story),
        _curves(story),
        _table(story),
        _honesty(story),
        _provenance(story),
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(story.title)}</title><style>{_STYLE_SHEET.read_text(encoding='utf-8')}</style></head>"
        f"<body>{cartography.hatch()}<main>{''.join(sections)}</main></body></html>\n"
    )


def _header(story: Story) -> str:
    pixels = sum(step.pixels for step in story.steps)
    figures = (
        (f"{len(story.zones):,}", "fields"),
        (f"{sum(zone.area_ha for zone in story.zones):,.0f} ha", "in fields"),
        (f"{len(story.days)}", "acquisitions"),
        (f"{pixels / 1e6:,.1f} M", "pixels computed"),
        (f"{len(story.steps)}", "jobs"),
        (f"{story.seconds:.0f} s", "start to finish"),
    )
    cards = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for value, label in figures)
    return (
        f'<header><p class="kicker">eorouter · {story.started_at:%d %B %Y}</p><h1>{escape(story.title)}</h1>'
        f'<p class="lead">{escape(story.place)}</p><dl class="figures">{cards}</dl></header>'
    )


def _maps(story: Story) -> str:
    view = story.view
    if view is None:
        return ""
    readings = {reading.zone_id: reading for reading in story.readings if reading.at == view.at}
    zones = [zone for zone in story.zones if view.shows(zone)]

    def value_of(zone: Zone) -> float | None:
        reading = readings.get(zone.id)
        return reading.mean if reading is not None and reading.is_trusted else None

    def label_of(zone: Zone) -> str:
        return _zone_label(zone, readings.get(zone.id))

    longitude, latitude = view.centre_lon_lat
    where = (
        f"{abs(latitude):.4f}° {'N' if latitude >= 0 else 'S'}, {abs(longitude):.4f}° {'E' if longitude >= 0 else 'W'}"
    )
    caption = f"{view.at:%d %B %Y}. Coordinates: {view.crs}, km; centre {where}."
    colour = cartography.draw(
        "colour", view, cartography.picture(view.true_colour), zones,
        value_of=value_of, label_of=label_of, is_coloured=True,
        description=f"True-colour map of {view.at:%d %B %Y} with the outlines of {len(zones)} fields, "
        "each outline coloured by the field's mean NDVI.",
    )  # fmt: skip
    ndvi = cartography.draw(
        "ndvi", view, cartography.ndvi_picture(view.ndvi), zones,
        value_of=value_of, label_of=label_of, is_coloured=False,
        description=f"NDVI map of {view.at:%d %B %Y} with the outlines of {len(zones)} fields.",
    )  # fmt: skip
    return (
        '<section><h2>The place</h2><div class="pair">'
        f"<figure>{colour}<figcaption><b>True colour</b>, outlines coloured by each field’s mean NDVI. "
        f"{escape(caption)}</figcaption></figure>"
        f"<figure>{ndvi}<figcaption><b>NDVI</b> as the service computed it, {view.ground_pixel_m:g} m pixels. "
        "Point at a field for its numbers; a dashed outline was seen too little to be trusted.</figcaption></figure>"
        f"</div>{cartography.legend()}</section>"
    )


def _zone_label(zone: Zone, reading: Reading | None) -> str:
    head = f"Field {zone.id} · {_words(zone.crop)} · {zone.area_ha:.2f} ha"
    if reading is None:
        return f"{head} · not measured"
    mean = "no valid pixel" if reading.mean is None else f"mean NDVI {reading.mean:.3f}"
    return f"{head} · {mean} · {reading.valid_fraction:.0%} valid"


def _days(story: Story) -> str:
    figures = "".join(_day(day) for day in story.days)
    return f'<section><h2>The season in NDVI</h2><div class="strip">{figures}</div></section>'


def _day(day: Day) -> str:
    cloud = "" if day.cloud_fraction is None else f", {day.cloud_fraction:.0%} cloud"
    alt = f"NDVI on {day.at:%d %B %Y}, {day.valid_fraction:.0%} valid"
    return (
        f'<figure><img class="hatched" alt="{escape(alt)}" src="{cartography.ndvi_picture(day.ndvi, longest=300)}">'
        f"<figcaption><b>{day.at:%d %b}</b> {day.valid_fraction:.0%} valid{cloud}</figcaption></figure>"
    )


def _curves(story: Story) -> str:
    if not story.days:
        return ""
    histogram = f"<figure>{charts.histograms(story)}<figcaption>All valid pixels, fields or not.</figcaption></figure>"
    if not story.zones:
        return f'<section><h2>What NDVI there is</h2><div class="pair">{histogram}</div></section>'
    truth = " Lines: the NDVI that the generator put into the fields." if story.truth else ""
    return (
        "<section><h2>How the crops grew</h2>"
        f"<figure>{charts.curves(story)}<figcaption>Points: mean NDVI of each crop over the fields of which at least "
        f"{TRUSTED_VALID_FRACTION:.0%} was seen, weighted by the area seen; bars: one standard deviation between "
        "fields."
        f"{truth}</figcaption></figure>"
        f'<div class="pair"><figure>{charts.visibility(story)}<figcaption>What could be seen.</figcaption></figure>'
        f"{histogram}</div></section>"
    )


def _table(story: Story) -> str:
    if not story.zones:
        return ""
    head = "".join(f'<th scope="col">{day.at:%d %b}</th>' for day in story.days)
    rows = "".join(_crop_row(story, crop) for crop in story.crops)
    truth = " Small print: the value put in, and the difference." if story.truth else ""
    return (
        '<section><h2>Numbers</h2><div class="scroll"><table class="numbers"><caption>Mean NDVI (no unit) per crop and '
        f"acquisition, with the share of its area that was valid.{truth}</caption>"
        '<thead><tr><th scope="col">Crop</th><th scope="col">Fields</th><th scope="col">Area (ha)</th>'
        f"{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _crop_row(story: Story, crop: str) -> str:
    zones = [zone for zone in story.zones if zone.crop == crop]
    cells = "".join(_crop_cell(story, crop, day.at) for day in story.days)
    return (
        f'<tr><th scope="row">{escape(_words(crop))}</th><td>{len(zones)}</td>'
        f"<td>{sum(zone.area_ha for zone in zones):,.1f}</td>{cells}</tr>"
    )


def _crop_cell(story: Story, crop: str, at: datetime) -> str:
    valid = f"<small>{story.crop_valid_fraction(crop, at):.0%} valid</small>"
    mean = story.crop_mean(crop, at)
    if mean is None:
        return f'<td class="unseen">not seen{valid}</td>'
    truth = story.truth_at(crop, at)
    compared = "" if truth is None else f"<small>{truth:.3f} · {mean - truth:+.3f}</small>"
    return f'<td><i style="background:{cartography.colour_of(mean)}"></i>{mean:.3f}{compared}{valid}</td>'


def _honesty(story: Story) -> str:
    if not story.notes:
        return ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in story.notes)
    return f'<section class="notes"><h2>What to keep in mind</h2><ul>{notes}</ul></section>'


def _provenance(story: Story) -> str:
    steps = _rows(
        (step.title, f"<code>{escape(step.method)}</code>", f"<code>{escape(step.job_id)}</code>",
         f"{step.pixels / 1e6:,.2f}", str(step.shards), f"{step.seconds:.2f}")
        for step in story.steps
    )  # fmt: skip
    outputs = _rows(
        (output.title, f"<code>{escape(output.path.name)}</code>", _size(output.size_bytes),
         f"<code>{escape(output.item_id)}</code>", f"<code>{escape(output.sha256)}</code>")
        for output in story.outputs
    )  # fmt: skip
    versions = " · ".join(f"{escape(name)} {escape(version)}" for name, version in story.versions.items())
    return (
        '<section class="provenance"><h2>Where it comes from</h2>'
        f"<p>Service <code>{escape(story.service_url)}</code>, project <code>{escape(story.project_id)}</code>, "
        f"started {story.started_at:%Y-%m-%d %H:%M:%S} UTC. A result’s bytes do not depend on the machine, the "
        "number of workers "
        "or on retries: the same inputs and versions give the same checksums.</p>"
        + _plain_table("Jobs", ("What", "Method", "Job", "Pixels (M)", "Shards", "Time (s)"), steps)
        + _plain_table("Files beside this page", ("What", "File", "Size", "Item", "SHA-256"), outputs)
        + f'<p class="versions">{versions}</p></section>'
    )


def _rows(rows: Iterable[Sequence[str]]) -> str:
    """Table rows; the first cell is text and is escaped here, the others are markup."""
    return "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )


def _plain_table(caption: str, names: Sequence[str], rows: str) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return (
        f'<div class="scroll"><table class="plain"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _words(name: str) -> str:
    """A name of a data set as people write it."""
    return name.replace("_", " ")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.2f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:,.1f} kB"
