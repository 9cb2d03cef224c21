"""Messages of msgspec as located faults."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonpointer import resolve_pointer
from msgspec import Meta, Struct, field

from eorouter.errors import Fault, InvalidInput
from eorouter.surface.faults import convert, did_you_mean, pointer
from eorouter.types import Input


class Size(StrEnum):
    SMALL = "small"
    LARGE = "large"


class Mean(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method", tag="mean"):
    band: str


class Ratio(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method", tag="ratio"):
    bands: Annotated[tuple[str, ...], Meta(min_length=2, max_length=2)]


class TaskInput(Input):
    task: Mean | Ratio
    size: Size = Size.SMALL
    mode: Literal["fast", "exact"] = "fast"
    count: Annotated[int, Meta(ge=1, le=9)] = 1
    box: tuple[float, float, float, float] | None = None
    weights: dict[str, float] = field(default_factory=dict)
    tasks: tuple[Mean | Ratio, ...] = ()
    at: Annotated[datetime, Meta(tz=True)] | None = None
    password: Annotated[str, Meta(min_length=8)] = "12345678"


MEAN = {"method": "mean", "band": "red"}


@pytest.mark.parametrize(
    ("request_", "where", "code", "words"),
    [
        ({}, "/task", "missing", "required"),
        ({"task": {"method": "mena", "band": "red"}}, "/task/method", "not_a_choice", "Did you mean 'mean'"),
        ({"task": {"band": "red"}}, "/task/method", "missing", "required"),
        ({"task": {"method": "mean"}}, "/task/band", "missing", "required"),
        ({"task": {**MEAN, "bnad": 1}}, "/task/bnad", "unknown_field", "Known fields: band, method"),
        ({"task": {"method": "ratio", "bands": ["a"]}}, "/task/bands", "invalid", "length"),
        ({"task": MEAN, "size": "larg"}, "/size", "not_a_choice", "Did you mean 'large'"),
        ({"task": MEAN, "mode": "quick"}, "/mode", "not_a_choice", "exact, fast"),
        ({"task": MEAN, "count": 10}, "/count", "invalid", "Expected int <= 9, got 10"),
        ({"task": MEAN, "count": 1.5}, "/count", "invalid", "Expected int, got float"),
        ({"task": MEAN, "box": [1, 2, 3]}, "/box", "invalid", "of length 4, got 3"),
        ({"task": MEAN, "box": [1, 2, "x", 3]}, "/box/2", "invalid", "Expected float, got str"),
        ({"task": MEAN, "weights": {"a/b": 1, "c~": "x"}}, "/weights/c~0", "invalid", "Expected float, got str"),
        ({"task": MEAN, "tasks": [MEAN, {"method": "x"}]}, "/tasks/1/method", "not_a_choice", "mean, ratio"),
        ({"task": MEAN, "tasks": [MEAN, {**MEAN, "y": 1}]}, "/tasks/1/y", "unknown_field", "band"),
        ({"task": MEAN, "at": "yesterday"}, "/at", "invalid", "datetime"),
        ({"task": MEAN, "at": "2024-01-01T00:00:00"}, "/at", "invalid", "timezone"),
        ({"task": MEAN, "cuont": 1}, "/cuont", "unknown_field", "Did you mean 'count'"),
        ({"task": 3}, "/task", "invalid", "Expected object, got int"),
    ],
)
def test_fault_is_located_and_says_how_to_mend_it(request_, where, code, words):
    with pytest.raises(InvalidInput) as raised:
        convert(request_, TaskInput)
    (fault,) = raised.value.errors
    assert (fault.pointer, fault.code) == (where, code)
    assert words in fault.message
    assert raised.value.message == f"{where}: {fault.message}"
    if code in {"invalid", "not_a_choice"}:
        resolve_pointer(request_, fault.pointer)


def test_faults_of_several_fields_are_all_told():
    with pytest.raises(InvalidInput) as raised:
        convert({"size": "x", "count": 0, "colour": 1}, TaskInput)
    assert {fault.pointer for fault in raised.value.errors} == {"/size", "/count", "/colour", "/task"}
    assert "3 more" in raised.value.message


def test_secret_is_not_repeated():
    with pytest.raises(InvalidInput) as raised:
        convert({"task": MEAN, "password": "hunter2"}, TaskInput)
    (fault,) = raised.value.errors
    assert fault.pointer == "/password"
    assert "hunter2" not in str(fault)


def test_many_faults_are_cut_off():
    with pytest.raises(InvalidInput) as raised:
        convert({f"field{number}": 1 for number in range(500)}, TaskInput)
    assert len(raised.value.errors) == 20


@given(st.dictionaries(st.text(), st.integers(), min_size=1), st.data())
def test_pointer_finds_its_value_whatever_the_keys(document, data):
    key = data.draw(st.sampled_from(sorted(document)))
    assert resolve_pointer({"a": [document]}, pointer(("a", 0, key))) == document[key]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 12) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["method", "band", "bands", "x"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["task", "size", "count", "box", "weights", "tasks", "at", "other"]), JSON))
def test_any_document_converts_or_is_refused_with_faults(document):
    faults = refused(document)
    assert faults is None or faults
    for fault in faults or ():
        assert fault.message
        assert fault.pointer == "" or fault.pointer.startswith("/")


def refused(document: dict) -> tuple[Fault, ...] | None:
    """The faults, where a document is refused."""
    try:
        convert(document, TaskInput)
    except InvalidInput as error:
        return error.errors
    return None


def test_nothing_near_suggests_nothing():
    assert did_you_mean("zzz", ["items", "jobs"]) == ""
