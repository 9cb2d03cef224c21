"""What a job costs: a price per job and per unit of what it takes, from a versioned price book.

    bound of the plan ──price──► the most it can come to   (rounded up, reserved before anything runs)
    use that was seen ──price──► what it came to           (rounded half up per line, never above the reservation)

Prices are decimals; a line is rounded once, to cents.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from functools import cache
from importlib import resources

from msgspec import Struct

from eorouter_compute.method import Bound

_CENT = Decimal("0.01")


class Use(Struct, frozen=True, kw_only=True):
    """What a job takes: pixels times bands, seconds of one core, bytes of its result."""

    pixels: int
    core_seconds: float
    bytes_written: int

    @classmethod
    def at_most(cls, bound: Bound) -> "Use":
        """What a plan allows."""
        return cls(pixels=bound.pixels, core_seconds=bound.seconds, bytes_written=bound.bytes_written)


class Line(Struct, frozen=True, kw_only=True):
    """One line of a price: so much of a unit at so much each, in euros; `cents` is rounded."""

    unit: str
    quantity: Decimal
    unit_price: Decimal
    cents: int


class Price(Struct, frozen=True, kw_only=True):
    """Lines and their sum."""

    lines: tuple[Line, ...]

    @property
    def cents(self) -> int:
        """The sum of the lines."""
        return sum(line.cents for line in self.lines)


class PriceBook(Struct, frozen=True, kw_only=True):
    """Prices of one version; `sha256` is that of the file, so that a quote names exactly what it was made from."""

    version: str
    currency: str
    sha256: str
    prices: Mapping[str, Decimal]
    free: frozenset[str]

    @property
    def name(self) -> str:
        """Version and digest, as jobs keep them."""
        return f"{self.version}:{self.sha256}"

    def promise(self, method_id: str, bound: Bound) -> Price:
        """The most a job can cost; every line is rounded up."""
        return self._price(method_id, Use.at_most(bound), ROUND_CEILING)

    def price(self, method_id: str, use: Use) -> Price:
        """What a job that took this much costs."""
        return self._price(method_id, use, ROUND_HALF_UP)

    def _price(self, method_id: str, use: Use, rounding: str) -> Price:
        if method_id in self.free:
            return Price(lines=())
        quantities = {
            "job": Decimal(1),
            "gigapixel": Decimal(use.pixels) / 10**9,
            "core_hour": Decimal(str(round(use.core_seconds, 6))) / 3600,
            "gigabyte_written": Decimal(use.bytes_written) / 10**9,
        }
        return Price(lines=tuple(_line(unit, each, self.prices[unit], rounding) for unit, each in quantities.items()))


def _line(unit: str, quantity: Decimal, unit_price: Decimal, rounding: str) -> Line:
    amount = (quantity * unit_price).quantize(_CENT, rounding=rounding)
    return Line(unit=unit, quantity=quantity, unit_price=unit_price, cents=int(amount * 100))


@cache
def book(version: str | None = None) -> PriceBook:
    """The price book of a version; by default the latest.

    Raises:
        LookupError: there is no such version.
    """
    folder = resources.files("eorouter.commerce") / "prices"
    known = sorted(each.name.removesuffix(".toml") for each in folder.iterdir() if each.name.endswith(".toml"))
    chosen = version or known[-1]
    if chosen not in known:
        raise LookupError(f"There is no price book {chosen!r}; there are: {', '.join(known)}.")
    data = (folder / f"{chosen}.toml").read_bytes()
    read = tomllib.loads(data.decode())
    prices = dict(read["processing"])
    free = frozenset(prices.pop("free"))
    return PriceBook(
        version=read["version"],
        currency=read["currency"],
        sha256=hashlib.sha256(data).hexdigest(),
        prices={unit: Decimal(text) for unit, text in prices.items()},
        free=free,
    )


def book_named(name: str) -> PriceBook:
    """The book that a job was promised under, as `PriceBook.name` names it.

    Raises:
        LookupError: there is no such version, or the file was edited since.
    """
    version, _, digest = name.partition(":")
    found = book(version)
    if found.sha256 != digest:
        raise LookupError(f"The price book {version!r} was changed after it was published.")
    return found
