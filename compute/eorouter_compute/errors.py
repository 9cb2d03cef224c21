"""Everything that can go wrong below the API, one class per code.

    ComputeError
    ├── RequestFault      the request cannot be done as asked; the caller can mend it
    │   ├── InvalidParameter · UnknownMethod · BandNotFound · AoiOutside · GridMismatch · InvalidGeometry
    │   └── InvalidExpression · UnknownIndex · TooLarge
    ├── SourceFault       a file is not what it should be; the caller can replace it
    │   └── NotARaster · NoCrs · SourceTruncated · SourceUnreadable · DecompressionBomb · UnsupportedFormat · NotAVector
    └── ShardFault        the machine, not the request
        └── Cancelled · AttemptExists · PartsLost · ShardOutOfMemory

`code` is part of the public contract. `pointer` is a JSON pointer into the parameters, empty where none applies.
"""

from typing import Any, ClassVar


class ComputeError(Exception):
    """Base of all errors of compute; `message` is written for the person who reads it."""

    code: ClassVar[str] = "compute_error"

    def __init__(self, message: str, *, pointer: str = "", **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.pointer = pointer
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process boundaries whole."""
        return (_rebuild, (type(self), self.message, self.pointer, self.data))


def _rebuild(kind: type[ComputeError], message: str, pointer: str, data: dict[str, Any]) -> ComputeError:
    return kind(message, pointer=pointer, **data)


class RequestFault(ComputeError):
    """The request cannot be done as asked."""


class InvalidParameter(RequestFault):
    """A parameter is outside what the method accepts."""

    code = "invalid_parameter"


class UnknownMethod(RequestFault):
    """No method of that name is installed."""

    code = "unknown_method"


class BandNotFound(RequestFault):
    """The item has no such band; the message names the bands it has."""

    code = "band_not_found"


class AoiOutside(RequestFault):
    """The area of interest does not touch the raster; the message says how far away it is."""

    code = "aoi_outside"


class GridMismatch(RequestFault):
    """Two inputs lie on grids that cannot be used together; the message says why."""

    code = "grid_mismatch"


class InvalidGeometry(RequestFault):
    """A geometry cannot be used; the message says where and why."""

    code = "invalid_geometry"


class InvalidExpression(RequestFault):
    """A formula is refused; `position` is the character at fault."""

    code = "invalid_expression"


class UnknownIndex(RequestFault):
    """The catalogue has no spectral index of that name; the message suggests near ones."""

    code = "unknown_index"


class TooLarge(RequestFault):
    """The work exceeds a limit of this installation; the message names the limit and the size."""

    code = "too_large"


class SourceFault(ComputeError):
    """A file is not what it should be."""


class NotARaster(SourceFault):
    """No allowed raster driver recognises the file."""

    code = "not_a_raster"


class NotAVector(SourceFault):
    """No allowed vector driver recognises the file."""

    code = "not_a_vector"


class UnsupportedFormat(SourceFault):
    """The file is of a known kind that this installation does not read."""

    code = "unsupported_format"


class NoCrs(SourceFault):
    """The file does not say where on Earth it lies."""

    code = "no_crs"


class SourceTruncated(SourceFault):
    """The file ends before its pixels do."""

    code = "source_truncated"


class SourceUnreadable(SourceFault):
    """Pixels could not be read; the message names the source and the window."""

    code = "source_unreadable"


class DecompressionBomb(SourceFault):
    """The file unpacks to far more than its size or the pixel limit allows."""

    code = "decompression_bomb"


class ShardFault(ComputeError):
    """The machine, not the request."""


class Cancelled(ShardFault):
    """The job was cancelled while the shard ran."""

    code = "cancelled"


class AttemptExists(ShardFault):
    """An object of this attempt was already written: another process runs the same attempt."""

    code = "attempt_exists"


class PartsLost(ShardFault):
    """What shards handed on is gone, or not whole; `places` says of which, in the order of the parts."""

    code = "parts_lost"


class ShardOutOfMemory(ShardFault):
    """The worker ran out of memory on this shard."""

    code = "job_out_of_memory"
