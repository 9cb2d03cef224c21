"""The price book: worked numbers, rounding by line, and that what was promised holds."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eorouter.commerce import pricing
from eorouter.commerce.pricing import Use
from eorouter_compute.method import Bound


def test_worked_number_of_the_page():
    """A tile of 10,980² in four bands, 40 s of one core, 600 MB of files."""
    bound = Bound(pixels=4 * 10_980**2, seconds=40.0, bytes_written=600_000_000)
    price = pricing.book("2026-11").promise("cog", bound)
    assert [(line.unit, line.cents) for line in price.lines] == [
        ("job", 1), ("gigapixel", 3), ("core_hour", 1), ("gigabyte_written", 2),
    ]  # fmt: skip
    assert price.cents == 7
    used = Use(pixels=bound.pixels, core_seconds=12.0, bytes_written=310_000_000)
    assert [line.cents for line in pricing.book("2026-11").price("cog", used).lines] == [1, 2, 0, 1]


def test_ingest_is_free():
    assert pricing.book().promise("ingest", Bound(pixels=10**12, seconds=1e5)).cents == 0


@given(
    pixels=st.integers(0, 10**14), seconds=st.floats(0, 1e7), written=st.integers(0, 10**14),
    share=st.floats(0.0, 1.0),
)  # fmt: skip
def test_use_within_the_bound_never_costs_more_than_promised(pixels, seconds, written, share):
    book = pricing.book()
    promised = book.promise("clip", Bound(pixels=pixels, seconds=seconds, bytes_written=written))
    use = Use(pixels=int(pixels * share), core_seconds=seconds * share, bytes_written=int(written * share))
    assert book.price("clip", use).cents <= promised.cents


def test_lines_are_rounded_once_each():
    lines = pricing.book().promise("clip", Bound(pixels=1, seconds=0.001, bytes_written=1)).lines
    assert [line.cents for line in lines] == [1, 1, 1, 1]
    assert all(isinstance(line.unit_price, Decimal) for line in lines)


def test_book_is_found_by_its_name_and_an_edited_one_is_refused():
    book = pricing.book()
    assert pricing.book_named(book.name) == book
    with pytest.raises(LookupError, match="changed after it was published"):
        pricing.book_named(f"{book.version}:{'0' * 64}")
    with pytest.raises(LookupError, match="there are: 2026-11"):
        pricing.book("1999-01")
