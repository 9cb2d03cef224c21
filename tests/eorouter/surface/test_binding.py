"""What JSON and queries may hold before an operation sees them."""

import contextlib
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from eorouter.errors import InvalidInput, MalformedBody
from eorouter.surface.binding import decode, from_query
from eorouter.types import Input

JSON = "application/json"


class ThingsListInput(Input):
    text: str | None = None
    number: int = 0
    ratio: float = 0.0
    box: tuple[float, float, float, float] | None = None
    tags: Annotated[tuple[str, ...], Meta(max_length=3)] = ()


def query(text: bytes) -> Any:
    return from_query(SimpleNamespace(input=ThingsListInput), {}, text)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"a": {"b": ["x", "\\u0000"]}}', "/a/b/1"),
        (b'{"a\\u0000": 1}', ""),
        (b'{"a": 9223372036854775808}', "/a"),
        (b'{"a": [-9223372036854775809]}', "/a/0"),
    ],
)
def test_json_that_no_database_holds_is_refused_where_it_stands(body, where):
    with pytest.raises(InvalidInput) as raised:
        decode(body, JSON)
    assert [fault.pointer for fault in raised.value.errors] == [where]
    assert raised.value.errors[0].code == "not_storable"


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": NaN}', b'{"a": 1e999}', b'{"a": Infinity}', b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"[" * 100_000,
        b'{"a":' * 65 + b"1" + b"}" * 65, b"\xef\xbb\xbf{}", b"{} {}", b"{", b'{"a": 1,}', b"\x00", b"'a'",
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_malformed_json_is_refused(body):
    with pytest.raises(MalformedBody):
        decode(body, JSON)


@pytest.mark.parametrize("body", [b"[]", b"null", b"3", b'"text"'])
def test_json_that_is_no_object_is_invalid(body):
    with pytest.raises(InvalidInput, match="Expected object"):
        decode(body, JSON)


def test_nothing_is_an_empty_object_and_deep_enough_json_passes():
    assert decode(b"", "") == decode(b" \n", "text/plain") == {}
    nested = b'{"a":' * 60 + b"1" + b"}" * 60
    assert decode(nested, "application/geo+json; charset=UTF-8")["a"]
    assert decode(b'{"a": 9223372036854775807}', JSON) == {"a": 2**63 - 1}


def test_position_counts_characters_and_lines():
    with pytest.raises(MalformedBody, match="line 3, column 11"):
        decode('{\n"ä": 1,\n"ö": "ü", x}'.encode(), JSON)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"text=%00", "/text"), (b"number=99999999999999999999", "/number"), (b"ratio=nan", "/ratio"),
        (b"ratio=-Infinity", "/ratio"), (b"box=1,2,3,nan", "/box/3"), (b"box=1,2,3", "/box"),
        (b"tags=a,b,c,d", "/tags"), (b"txet=a", "/txet"), (b"number=1.5", "/number"),
    ],
)  # fmt: skip
def test_query_that_cannot_be_meant_is_refused_where_it_stands(text, where):
    with pytest.raises(InvalidInput) as raised:
        query(text)
    assert [fault.pointer for fault in raised.value.errors] == [where]


@pytest.mark.parametrize("text", [b"text=%ff", b"\xff=1", b"&".join([b"a=1"] * 1001)])
def test_query_that_is_no_text_is_malformed(text):
    with pytest.raises(MalformedBody):
        query(text)


def test_query_values_are_converted():
    asked = query(b"text=a%20b&number=7&ratio=0.5&box=1,2,3.5,-4&tags=a,b&tags=c")
    assert asked == ThingsListInput(text="a b", number=7, ratio=0.5, box=(1, 2, 3.5, -4), tags=("a", "b", "c"))


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(body):
    for read in (lambda: decode(body, JSON), lambda: query(body)):
        with contextlib.suppress(MalformedBody, InvalidInput):  # anything else is a fault of ours
            read()
