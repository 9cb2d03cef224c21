"""The report: whole, self-contained, honest, and deaf to hostile names."""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eorouter.demo import cartography, report
from eorouter.demo.story import Reading, Story, Zone

MakeStory = Callable[..., Story]
VOID = {"meta", "img", "br", "link", "input"}
SVG_VOID_OK = {"path", "rect", "stop", "image", "use", "circle", "line"}
HOSTILE = "<script>alert(1)</script>\" onmouseover='x' &amp; ]]>"


class Page(HTMLParser):
    """Reads a page strictly: every element closed in order; keeps what tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def decoded(address: str) -> np.ndarray:
    kind, data = address.split(";base64,")
    assert kind in {"data:image/png", "data:image/webp"}
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def test_report_is_a_well_formed_page_with_all_its_parts(make_story: MakeStory) -> None:
    page = Page(report.render(make_story()))
    headings = re.findall(r"<h2>(.*?)</h2>", report.render(make_story()))
    assert headings == [
        "The place", "The season in NDVI", "How the crops grew", "Numbers", "What to keep in mind",
        "Where it comes from",
    ]  # fmt: skip
    assert len(page.all("html")) == 1
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("table")) == 3


def test_report_asks_nothing_of_the_network(make_story: MakeStory) -> None:
    text = report.render(make_story())
    assert "://" not in text
    page = Page(text)
    assert not page.all("script") + page.all("link") + page.all("iframe")
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            address = attributes.get(name, "#")
            assert address.startswith(("#", "data:image/")), (tag, address[:80])
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_report_has_every_picture_with_words_for_those_who_do_not_see_it(make_story: MakeStory) -> None:
    page = Page(report.render(make_story()))
    pictures = page.all("img") + page.all("image")
    assert len(page.all("img")) == 5
    for picture in page.all("img"):
        assert picture["alt"].startswith("NDVI on")
    maps = [svg for svg in page.all("svg") if svg.get("class") == "map"]
    charts = [svg for svg in page.all("svg") if svg.get("class") == "chart"]
    assert (len(maps), len(charts)) == (2, 3)
    for drawing in maps + charts + [svg for svg in page.all("svg") if svg.get("class") == "legend"]:
        assert drawing["role"] == "img"
        assert len(drawing["aria-label"]) > 20
    for picture in pictures:
        pixels = decoded(picture.get("src") or picture.get("href") or picture["xlink:href"])
        assert pixels.shape[0] > 50
        assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 4


def test_report_gives_no_id_twice_and_refers_to_none_that_is_missing(make_story: MakeStory) -> None:
    text = report.render(make_story())
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)


def test_report_takes_names_for_text_and_never_for_markup(make_story: MakeStory) -> None:
    story = make_story()
    zones = [replace(zone, id=f"{zone.id}{HOSTILE}", crop=f"{zone.crop}{HOSTILE}") for zone in story.zones]
    hostile = make_story(
        title=HOSTILE, place=HOSTILE, zones=zones, notes=[HOSTILE], service_url=HOSTILE, project_id=HOSTILE, truth={},
        readings=[replace(reading, zone_id=f"{reading.zone_id}{HOSTILE}") for reading in story.readings],
        versions={HOSTILE: HOSTILE},
        steps=[replace(story.steps[0], title=HOSTILE, method=HOSTILE, job_id=HOSTILE)],
        outputs=[
            replace(
                story.outputs[0], title=HOSTILE, path=Path(HOSTILE.replace("/", "")), item_id=HOSTILE, sha256=HOSTILE
            )
        ],
    )  # fmt: skip
    page = Page(report.render(hostile))
    assert not page.all("script")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert HOSTILE in page.text
    assert sum(HOSTILE in text for text in page.text) > 20


def test_report_says_not_seen_where_cloud_hid_the_fields(make_story: MakeStory) -> None:
    text = " ".join(Page(report.render(make_story())).text)
    assert "not seen" in text
    assert "0% valid" in text
    assert "half of the scene lay under cloud" in text


def test_report_of_unknown_data_claims_no_truth(make_story: MakeStory) -> None:
    story = make_story(is_synthetic=False, truth={}, truth_on_days={}, view=None, notes=[])
    text = report.render(story)
    assert "put in" not in text
    assert "generator" not in text
    assert "The place" not in text
    Page(text)


def test_report_without_fields_still_shows_the_rasters(make_story: MakeStory) -> None:
    page = Page(report.render(make_story(zones=[], readings=[], truth={}, truth_on_days={})))
    assert len(page.all("img")) == 5


def test_report_stays_small_with_a_thousand_fields(make_story: MakeStory) -> None:
    story = make_story()
    zones = [replace(zone, id=f"{zone.id}-{copy}") for zone in story.zones for copy in range(70)]
    readings = [
        replace(reading, zone_id=f"{reading.zone_id}-{copy}") for reading in story.readings for copy in range(70)
    ]
    assert len(report.render(make_story(zones=zones, readings=readings)).encode()) < 5_000_000


def test_crop_mean_weighs_by_seen_area_and_leaves_out_what_was_hardly_seen(make_story: MakeStory) -> None:
    at = make_story().days[0].at
    ring = [np.zeros((4, 2))]
    zones = [
        Zone(id=name, crop="rye", area_ha=area, rings=ring) for name, area in (("a", 3.0), ("b", 1.0), ("c", 50.0))
    ]

    def reading(zone_id: str, mean: float | None, valid_fraction: float) -> Reading:
        return Reading(zone_id=zone_id, at=at, mean=mean, median=mean, std=None, valid_fraction=valid_fraction)

    story = make_story(zones=zones, readings=[reading("a", 0.8, 0.5), reading("b", 0.2, 1.0), reading("c", 0.9, 0.49)])
    assert story.crop_mean("rye", at) == pytest.approx((0.8 * 1.5 + 0.2 * 1.0) / 2.5)
    assert story.crop_valid_fraction("rye", at) == pytest.approx((1.5 + 1.0 + 24.5) / 54)
    assert make_story(zones=zones, readings=[reading("c", None, 0.0)]).crop_mean("rye", at) is None


def test_map_puts_a_field_where_its_coordinates_are(make_story: MakeStory) -> None:
    story = make_story()
    assert story.view is not None
    frame = cartography.Frame(bounds=story.view.bounds)
    west, south, east, north = story.view.bounds
    assert (frame.x(west), frame.y(north)) == (0.0, 0.0)
    assert (frame.x(east), frame.y(south)) == pytest.approx((1000.0, frame.height))
    path = frame.path([np.array([(west, north), (east, north), (east, south)])])
    assert path == "M0.0,0.0 1000.0,0.0 1000.0,1000.0Z"


def test_map_shows_only_fields_in_the_picture(make_story: MakeStory) -> None:
    story = make_story()
    assert story.view is not None
    clear = story.view.true_colour.copy()
    clear[:, 100:, 3] = 0
    view = replace(story.view, true_colour=clear)
    shown = [zone.id for zone in story.zones if view.shows(zone)]
    assert shown == [zone.id for zone in story.zones if zone.rings[0][:, 0].mean() < story.view.bounds[0] + 1000]
    assert len(shown) == 8
    far = Zone(id="far", crop="rye", area_ha=1.0, rings=[np.full((4, 2), 1.0e6)])
    assert not view.shows(far)


def test_ndvi_picture_is_clear_where_nothing_was_seen_and_darker_where_more_grows() -> None:
    ndvi = np.linspace(0.0, 0.9, 64 * 64, dtype=np.float32).reshape(64, 64)
    ndvi[:8] = np.nan
    pixels = decoded(cartography.ndvi_picture(ndvi))
    assert (pixels[:8, :, 3] == 0).all()
    assert (pixels[8:, :, 3] == 255).all()
    luminance = pixels[8:, :, :3].astype(float) @ (0.2126, 0.7152, 0.0722)
    rows = luminance.mean(axis=1)
    assert (np.diff(rows) < 1.0).all()
    assert rows[0] - rows[-1] > 120
