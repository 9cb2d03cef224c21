"""What a worker notes of a shard while it runs: where the time goes, how many bytes pass, and what is said.

One `Witness` per try, on the thread that runs it; who reads or writes pixels says so by `reading()` and `writing()`,
who logs need not know. Time that is neither is computing. Outside of a shard all of it costs a look at a thread's local
variable and does nothing.

Bytes are those of decoded pixels and of whole objects for reads, and those handed to the store for writes. Lines are
bounded in number and length: a shard that talks without end is cut off, and the number of lines lost is told.
"""

import logging
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, Self

import structlog
from msgspec import Struct

Stage = Literal["read", "write"]

LINES_MAX = 200
"""Most lines kept of one try."""

_TEXT_MAX = 2000
_FIELDS_MAX = 32
_SPANS_MAX = 128
_OWN = "eorouter"
_PLACED = frozenset({"event", "level", "logger", "timestamp"})  # these have a field of their own, or are of no use


class Line(Struct, frozen=True, kw_only=True, array_like=True):
    """A line that a shard logged; `at` in seconds since 1970 by the worker's clock."""

    at: float
    level: str
    logger: str
    event: str
    data: dict[str, Any] = {}


class Witness:
    """The notes on one try.

    Attributes:
        read_s, write_s: seconds spent so far.
        read_bytes, written_bytes: bytes passed so far.
        lines, lines_lost: what was logged, and how many lines more.
        spans: stage, begin and end in nanoseconds since 1970, of the first stretches; only where traces are wanted.
    """

    def __init__(self, *, keeps_spans: bool = False) -> None:
        self.read_s = self.write_s = 0.0
        self.read_bytes = self.written_bytes = 0
        self.lines: list[Line] = []
        self.lines_lost = 0
        self.spans: list[tuple[Stage, int, int]] = []
        self._keeps_spans = keeps_spans
        self._stage: Stage | None = None

    def __enter__(self) -> Self:
        """Become the witness of this thread."""
        _here.witness = self
        _present.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the thread without a witness."""
        _here.witness = None
        _present.remove(self)

    def note(self, event: Mapping[str, Any]) -> None:
        """Keep a line of the log as structlog has it."""
        if len(self.lines) >= LINES_MAX:
            self.lines_lost += 1
            return
        fields = {str(name): _plain(value) for name, value in event.items() if name not in _PLACED}
        self.lines.append(
            Line(
                at=time.time(),
                level=str(event.get("level", "info")),
                logger=str(event.get("logger", ""))[:100],
                event=str(event.get("event", ""))[:_TEXT_MAX],
                data=dict(list(fields.items())[:_FIELDS_MAX]),
            )
        )

    def begin(self, stage: Stage) -> bool:
        """Enter a stage; False inside another one, whose time it is then."""
        if self._stage is not None:
            return False
        self._stage = stage
        return True

    def end(self, began: float) -> None:
        """Leave the stage that was entered at `began` of `perf_counter`."""
        stage, self._stage = self._stage, None
        seconds = time.perf_counter() - began
        if stage == "read":
            self.read_s += seconds
        else:
            self.write_s += seconds
        if stage is not None and self._keeps_spans and len(self.spans) < _SPANS_MAX:
            now = time.time_ns()
            self.spans.append((stage, now - int(seconds * 1e9), now))


class _Here(threading.local):
    def __init__(self) -> None:
        self.witness: Witness | None = None


class _Stretch:
    """One stay in a stage; a class, because a generator would cost more than a short read does."""

    __slots__ = ("_began", "_stage", "_witness")

    def __init__(self, stage: Stage) -> None:
        self._stage: Stage = stage
        self._witness: Witness | None = None
        self._began = 0.0

    def __enter__(self) -> None:
        witness = _here.witness
        if witness is not None and witness.begin(self._stage):
            self._witness = witness
            self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._witness is not None:
            self._witness.end(self._began)


_here = _Here()
_present: list[Witness] = []


def reading() -> _Stretch:
    """What happens inside is reading."""
    return _Stretch("read")


def writing() -> _Stretch:
    """What happens inside is writing."""
    return _Stretch("write")


def count_read(size: int) -> None:
    """`size` bytes came in."""
    if (witness := _here.witness) is not None:
        witness.read_bytes += size


def count_written(size: int) -> None:
    """`size` bytes went out."""
    if (witness := _here.witness) is not None:
        witness.written_bytes += size


def current() -> Witness | None:
    """The witness of this thread's shard; of a thread that a shard started, that of the only shard there is."""
    if _here.witness is not None:
        return _here.witness
    return _present[0] if len(_present) == 1 else None


def overhear(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Be a processor of structlog: what is logged while a shard runs belongs to its job as well; debugging does not."""
    if event.get("level") != "debug" and (witness := current()) is not None:
        witness.note(event)
    return event


class Overhearing(logging.Handler):
    """The same for lines of libraries: their warnings and errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record."""
        if (witness := current()) is not None and not record.name.startswith(_OWN):
            witness.note({"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name})


def listen() -> None:
    """Have what this process logs while a shard runs go to its job as well as to standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            overhear,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.captureWarnings(capture=True)
    logging.getLogger().addHandler(Overhearing())


def _plain(value: Any) -> Any:
    """A value as JSON and both databases can hold it, and no longer than a line may be."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value.bit_length() < 64:
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    text = value if isinstance(value, str) else repr(value)
    return text[:_TEXT_MAX].replace("\0", "").encode("utf-8", "replace").decode()
