import csv
import io

import numpy as np
import pytest

from eorouter_compute import alteration, change_report
from eorouter_compute.attempt import Attempt, read_object


def test_sums_of_shards_make_a_row_of_each_class(tmp_path):
    names = ("unchanged", "decrease, by half", "increase")
    colors = change_report.colors(names, None)
    rows = change_report.class_rows(
        [[5, 1, 0], [10, 0, 4]], [[500_000, 100_000, 0], [1_000_001, 0, 400_000]], names, colors
    )
    assert [(row["class"], row["name"], row["pixels"], row["share"]) for row in rows] == [
        (0, "unchanged", 15, 0.75), (1, "decrease, by half", 1, 0.05), (2, "increase", 4, 0.2),
    ]  # fmt: skip
    assert [row["area_m2"] for row in rows] == pytest.approx([1500.001, 100, 400])
    asset = change_report.class_table(rows, Attempt((tmp_path / "job").as_uri()), "change")
    read = list(csv.DictReader(io.StringIO(read_object(asset.object.href).decode())))
    assert [row["name"] for row in read] == list(names)
    assert [float(row["area_m2"]) for row in read] == pytest.approx([1500.001, 100, 400])
    assert [row["color"] for row in read] == ["#dededa", "#b22234", "#1c5c9c"]


def test_of_nothing_there_is_no_share(tmp_path):
    rows = change_report.class_rows(
        [[0, 0]], [[0, 0]], ("unchanged", "changed"), change_report.colors(("a", "b"), None)
    )
    assert [row["share"] for row in rows] == [None, None]
    asset = change_report.class_table(rows, Attempt((tmp_path / "job").as_uri()), "change")
    assert b'0,"unchanged",0,0.000,,#dededa\n' in read_object(asset.object.href)


@pytest.mark.parametrize("index", sorted(alteration.SEVERITY))
def test_severity_goes_from_gain_through_gray_to_loss(index):
    severity = alteration.SEVERITY[index]
    found = change_report.colors(severity.names, severity)[: len(severity.names)].astype(int)
    assert found[severity.unchanged].tolist() == [222, 222, 218]
    # The higher the severity the less green and blue; the more gain the less red.
    assert (np.diff(found[severity.unchanged :, 1]) < 0).all()
    assert (np.diff(found[: severity.unchanged + 1, 0]) > 0).all()
    assert found[-1].tolist() == [178, 34, 52]
