import msgspec
import numpy as np
import pytest

from eorouter_compute import alteration
from eorouter_compute.alteration import (
    ChangeVector,
    Components,
    Difference,
    IndexDifference,
    IrMad,
    LogRatio,
    Omnibus,
    Ratio,
    Severity,
    Verdict,
)
from eorouter_compute.errors import InvalidParameter
from eorouter_compute.thresholds import Fixed, Otsu, Sigmas, Significance


def pixel(before, after):
    return np.array([before, after], np.float32).reshape(2, -1, 1)


@pytest.mark.parametrize(
    ("statistic", "before", "after", "expected"),
    [
        (Difference(), [3], [-4], [-7]),
        (Ratio(), [4], [6], [1.5]),
        (Ratio(), [4], [0], [np.nan]),
        (Ratio(), [-4], [-6], [np.nan]),
        (LogRatio(), [2], [20], [10]),
        (LogRatio(), [0], [20], [np.nan]),
        (LogRatio(unit="db"), [-12], [-7.5], [4.5]),
        (ChangeVector(), [1, 1], [4, 5], [5, np.degrees(np.arctan2(4, 3))]),
        (ChangeVector(), [4, 5], [1, 1], [5, 180 + np.degrees(np.arctan2(4, 3))]),
        (ChangeVector(), [1, 0, 0], [0, 2, 0], [np.sqrt(5), 90]),
        (ChangeVector(), [1, 2, 3], [2, 4, 6], [np.sqrt(14), 0]),
        (IndexDifference(index="dNBR"), [0.7], [-0.1], [0.8]),
        (IndexDifference(index="dNDVI"), [0.2], [0.5], [-0.3]),
        (IndexDifference(index="RdNBR"), [0.49], [0.14], [500]),
        (IndexDifference(index="RdNBR"), [-0.25], [-0.45], [400]),
        (IndexDifference(index="RdNBR"), [0.0], [-0.1], [100 / np.sqrt(0.001)]),
        (IndexDifference(index="RBR"), [0.499], [0.199], [0.2]),
        (Difference(), [np.nan], [1], [np.nan]),
        (ChangeVector(), [np.nan, 1], [1, 1], [np.nan, np.nan]),
    ],
)
def test_a_pixel_by_hand(statistic, before, after, expected):
    found = alteration.measure(statistic, pixel(before, after))[:, 0]
    np.testing.assert_allclose(found, np.array(expected, float), rtol=2e-6, atol=5e-2 if len(expected) > 1 else 1e-9)
    assert len(found) == len(alteration.band_names(statistic))


# By the published tables: just below and at every limit.
LIMITS = {
    "dNBR": (-0.25, -0.1, 0.1, 0.27, 0.44, 0.66),
    "RdNBR": (69, 316, 641),
    "RBR": (0.1, 0.3),
}


@pytest.mark.parametrize("index", LIMITS)
def test_severity_begins_at_its_published_limit(index):
    breaks = () if index != "RBR" else LIMITS["RBR"]
    statistic = IndexDifference(index=index, breaks=breaks)
    severity = alteration.severity(statistic)
    assert severity is not None
    assert severity.breaks == LIMITS[index]
    verdict = Verdict(names=severity.names, severity=severity)
    for place, limit in enumerate(LIMITS[index]):
        at = np.array(
            [np.nextafter(limit, -9e9, dtype="float32"), np.nextafter(limit, 9e9, dtype="float32")], "float32"
        )
        classes, confidence = alteration.classified(statistic, at[np.newaxis], verdict)
        assert classes.tolist() == [place, place + 1]
        assert ((confidence >= 0) & (confidence <= 10_000)).all()


def test_rbr_has_classes_only_when_they_are_given():
    assert alteration.severity(IndexDifference(index="RBR")) is None
    found = alteration.severity(IndexDifference(index="RBR", breaks=(-0.1, 0.1, 0.3)))
    assert found == Severity(
        breaks=(-0.1, 0.1, 0.3), names=("below -0.1", "-0.1 to 0.1", "0.1 to 0.3", "0.3 and above"), unchanged=1
    )
    for breaks in ((0.3, 0.1), (0.1, 0.1)):
        with pytest.raises(InvalidParameter, match="ascend"):
            alteration.severity(IndexDifference(index="RBR", breaks=breaks))


@pytest.mark.parametrize(
    ("direction", "expected"), [("both", [1, 0, 2, 255]), ("increase", [0, 0, 2, 255]), ("decrease", [1, 0, 0, 255])]
)
def test_directions_of_a_threshold(direction, expected):
    verdict = Verdict(names=("unchanged", "decrease", "increase"), centre=1.0, limit=2.0, direction=direction)
    bands = np.array([[-4.0, 3.0, 5.0, np.nan]], "float32")
    classes, confidence = alteration.classified(Difference(), bands, verdict)
    assert classes.tolist() == expected
    # 1 - limit / distance from the centre: 5 and 4 away.
    if direction == "both":
        assert alteration.in_units(confidence).tolist() == [6000, 0, 5000, 0]


@pytest.mark.parametrize(
    ("direction", "expected"), [("both", [0, 3, 6]), ("increase", [3, 3, 6]), ("decrease", [0, 3, 3])]
)
def test_directions_of_severity_keep_the_unchanged_class(direction, expected):
    severity = alteration.severity(IndexDifference(index="dNDVI"))
    verdict = Verdict(names=severity.names, severity=severity, direction=direction)
    bands = np.array([[-0.9, 0.0, 0.9]], "float32")
    assert alteration.classified(IndexDifference(index="dNDVI"), bands, verdict)[0].tolist() == expected


def test_a_test_is_judged_by_its_probability():
    verdict = Verdict(names=("unchanged", "changed"), level=0.05)
    bands = np.array([[3.0, 9.0, np.nan], [0.9, 0.95, np.nan]], "float32")
    classes, confidence = alteration.classified(IrMad(), bands, verdict)
    assert classes.tolist() == [0, 1, 255]
    assert alteration.in_units(confidence).tolist() == [9000, 9500, 0]


def test_groups_join_the_classes_of_one_kind_of_change():
    severity = alteration.SEVERITY["dNBR"]
    groups = Verdict(names=severity.names, severity=severity).groups
    assert groups[:7].tolist() == [1, 1, 0, 2, 2, 2, 2]
    assert Verdict(names=("unchanged", "decrease", "increase")).groups[:4].tolist() == [0, 1, 2, 0]


def test_a_ratio_is_judged_by_its_logarithm():
    assert alteration.score(Ratio(), np.array([1, np.e, 1 / np.e])).tolist() == pytest.approx([0, 1, -1])
    centre, limit = alteration.fixed(Ratio(), Fixed(value=2.0))
    verdict = Verdict(names=alteration.class_names(Ratio(), None), centre=centre, limit=limit)
    classes, _ = alteration.classified(Ratio(), np.array([[0.49, 0.51, 1.99, 2.01]], "float32"), verdict)
    assert classes.tolist() == [1, 0, 0, 2]
    told = alteration.words(Ratio(), Fixed(value=2.0), verdict)
    assert (told["by"], told["centre"], told["value"]) == ("fixed", 1.0, pytest.approx(2.0))


def test_each_statistic_has_a_threshold_and_names_that_go_with_it():
    statistics = [Difference(), Ratio(), LogRatio(), ChangeVector(), IrMad(), Components(), IndexDifference(),
                  Omnibus(looks=4)]  # fmt: skip
    for statistic in statistics:
        threshold = alteration.default_threshold(statistic)
        assert isinstance(threshold, Significance) == isinstance(statistic, IrMad | Omnibus)
        alteration.refuse(statistic, threshold, "both")
        names = alteration.class_names(statistic, None)
        assert len(names) == 2 + alteration.is_signed(statistic)
        assert msgspec.convert(msgspec.to_builtins(statistic), type(statistic)) == statistic


@pytest.mark.parametrize(
    ("statistic", "threshold", "direction", "pointer"),
    [
        (Difference(), Significance(), "both", "/threshold/by"),
        (Ratio(), Fixed(value=1.0), "both", "/threshold/value"),
        (IrMad(), Significance(), "decrease", "/direction"),
        (ChangeVector(), Otsu(), "increase", "/direction"),
        (Omnibus(looks=3), Sigmas(), "increase", "/direction"),
    ],
)
def test_what_does_not_go_together_is_refused(statistic, threshold, direction, pointer):
    with pytest.raises(InvalidParameter) as caught:
        alteration.refuse(statistic, threshold, direction)
    assert caught.value.pointer == pointer


@pytest.mark.parametrize("direction", ["increase", "decrease", "both"])
def test_the_sample_is_judged_in_the_wanted_direction(direction):
    first = np.array([2.0, -3.0, np.nan])
    expected = {"increase": [2, -3], "decrease": [-2, 3], "both": [2, 3]}[direction]
    assert alteration.sampled_score(Difference(), first, direction).tolist() == expected
