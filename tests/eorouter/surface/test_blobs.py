"""Stored objects as answers: ranges, conditional requests, names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eorouter.errors import RangeNotSatisfiable
from eorouter.surface.blobs import byte_range, disposition, entity_tag, matches

SCENE = bytes(range(256)) * 20_000  # as the toy operation says


@pytest.fixture
async def picture(client_of, toy_stores):
    """A client, the object being there."""
    await toy_stores.objects.put("toys/ball", SCENE)
    async with client_of() as client:
        yield client


async def test_object_is_answered_whole_with_its_validators(picture):
    answer = await picture.get("/v1/toys/ball/picture")
    assert answer.status_code == 200
    assert answer.content == SCENE
    assert answer.headers["content-type"] == "image/tiff"
    assert answer.headers["content-length"] == str(len(SCENE))
    assert answer.headers["etag"] == '"abc"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-security-policy"] == "sandbox"
    assert answer.headers["content-disposition"].startswith("attachment; ")
    assert "\r" not in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=5000000-", 5_000_000, 5_120_000), ("bytes=-7", 5_119_993, 5_120_000),
     ("bytes=100-99999999", 100, 5_120_000), ("BYTES = 3 - 4", 3, 5)],
)  # fmt: skip
async def test_range_is_answered_in_part(picture, asked, start, stop):
    answer = await picture.get("/v1/toys/ball/picture", headers={"range": asked})
    assert answer.status_code == 206
    assert answer.content == SCENE[start:stop]
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(SCENE)}"


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=1-2", "bytes=9-3", "bytes=-", "bytes=a-b"])
async def test_range_that_is_several_or_none_is_answered_whole(picture, asked):
    answer = await picture.get("/v1/toys/ball/picture", headers={"range": asked})
    assert (answer.status_code, len(answer.content)) == (200, len(SCENE))


@pytest.mark.parametrize("asked", ["bytes=5120000-", "bytes=-0", f"bytes={'9' * 40}-"])
async def test_range_outside_is_416_and_says_the_size(picture, asked):
    answer = await picture.get("/v1/toys/ball/picture", headers={"range": asked})
    assert answer.status_code == 416
    assert answer.json()["code"] == "range_not_satisfiable"
    assert answer.headers["content-range"] == f"bytes */{len(SCENE)}"


async def test_if_range_of_another_version_is_answered_whole(picture):
    for tag, status in (('"abc"', 206), ('"old"', 200), ('W/"abc"', 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)):
        answer = await picture.get("/v1/toys/ball/picture", headers={"range": "bytes=0-9", "if-range": tag})
        assert answer.status_code == status, tag


async def test_current_copy_is_304_without_body(picture):
    for tags in ('"abc"', 'W/"abc"', '"x", "abc"', "*"):
        answer = await picture.get("/v1/toys/ball/picture", headers={"if-none-match": tags})
        assert (answer.status_code, answer.content) == (304, b""), tags
        assert answer.headers["etag"] == '"abc"'


async def test_head_says_the_size_and_sends_nothing(picture):
    answer = await picture.head("/v1/toys/ball/picture", headers={"range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(SCENE))


async def test_object_that_is_gone_is_404(picture):
    answer = await picture.get("/v1/toys/cube/picture")
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


@given(st.integers(1, 10**6), st.integers(0, 2 * 10**6), st.integers(0, 2 * 10**6))
def test_byte_range_lies_within_the_object_or_is_refused(size, first, last):
    for header in (f"bytes={first}-{last}", f"bytes={first}-", f"bytes=-{last}"):
        try:
            found = byte_range(header, size)
        except RangeNotSatisfiable:
            assert first >= size or last == 0
            continue
        if found is not None:
            start, stop = found
            assert 0 <= start < stop <= size


@given(st.text())
def test_disposition_is_one_safe_header_line(name):
    header = disposition(name)
    header.encode("ascii")
    assert header.isprintable()
    plain = header.removeprefix('attachment; filename="').partition('"; filename*=')[0]
    assert plain
    assert not set(plain) & set('"\\/')


@given(st.text())
def test_entity_tag_matches_itself(text):
    tag = entity_tag(text)
    assert tag.isascii()
    assert matches(tag, tag)
    assert not matches('"other-tag-that-is-none"', tag)
