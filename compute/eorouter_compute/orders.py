"""An order for a shard: what travels to a worker, how the worker executes it, and what comes back.

A shard travels as msgpack bytes to one module-level function, `run_order`, and comes back as bytes: a part, a result,
or a failure told as data. Nothing depends on pickled closures or exceptions. Workers load this module before they take
work (`dask_setup`).
"""

import os
import resource
import socket
import time
import traceback
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import locket
import msgspec
from distributed import Worker
from msgspec import Struct

import eorouter_kernels
from eorouter_compute import faults, meters, method, raster, tracing, witness
from eorouter_compute.attempt import Attempt, is_whole, read_object
from eorouter_compute.build import build
from eorouter_compute.errors import (
    AttemptExists,
    ComputeError,
    PartsLost,
    RequestFault,
    ShardFault,
    ShardOutOfMemory,
    SourceFault,
)
from eorouter_compute.method import InputItem, Part
from eorouter_compute.witness import Line, Witness

MERGE = -1
"""Number of the order that merges the parts of the last round; the turn to round n is order MERGE - n."""


class ShardOrder(Struct, frozen=True, kw_only=True):
    """One try at one shard.

    Attributes:
        job_id: whose shard.
        number: which; `MERGE` for the merge, `MERGE - n` for the turn to round n.
        token: fencing token of this try.
        label: what the dashboard shows, `method`.
        prefix: URL below which the attempt writes.
        task: JSON of the method's parameters with their tag; empty when `shared` is set.
        inputs: msgpack of the input items; empty when `shared` is set.
        shared: URL of an object that holds `[task, inputs]` as msgpack, where they are too large to travel each time.
        body: the shard's body, as planned.
        parts: for the merge, the parts of the last round's shards in order, each msgpack; for a turn, those of the
            round before it.
        memory_bytes: peak memory by the plan's bound.
        halvings: how often to halve the side of the shard's pieces, see `Attempt`.
        merge_prefix: for the only shard of a job, URL below which its merge writes, which is done along with it.
        traceparent: of the span this try belongs to, where traces are on.
        build: of whoever sends it; a worker of another one refuses.
    """

    job_id: str
    number: int
    token: int
    label: str
    prefix: str
    task: bytes = b""
    inputs: bytes = b""
    shared: str | None = None
    body: bytes = b""
    parts: tuple[bytes, ...] = ()
    memory_bytes: int = 0
    halvings: int = 0
    merge_prefix: str = ""
    traceparent: str = ""
    build: str = msgspec.field(default_factory=build)

    @property
    def run(self) -> tuple[str, int, int]:
        """Identity of this try."""
        return self.job_id, self.number, self.token


class Failure(Struct, frozen=True, kw_only=True):
    """Why a shard did not make it. `kind` says who can mend it: the caller, nobody (`cancelled`), or another try."""

    kind: Literal["request", "source", "cancelled", "memory", "machine", "defect"]
    code: str
    message: str
    pointer: str = ""
    data: dict[str, Any] = {}
    traceback: str = ""


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of an order: `part` (msgpack of Part, of Result for a merge, of shards for a turn) or `failure`.

    Attributes:
        seconds: on the worker; of it, `read_s` and `write_s` were spent with reading and writing.
        waited_s: with the cluster, but not on a worker: the way there and back, and the wait for a free thread.
        read_bytes, written_bytes: as `witness` counts them.
        is_bystander: the order failed through no fault of its own; the try does not count.
        pixels: that the method reported as done; a bound may be far above them.
        result: msgpack of the Result, where the order was merged, too.
        lines, lines_lost: what was logged meanwhile.
    """

    part: bytes | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    read_s: float = 0.0
    write_s: float = 0.0
    waited_s: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    peak_rss_bytes: int = 0
    worker: str = ""
    is_bystander: bool = False
    pixels: int = 0
    result: bytes | None = None
    lines: tuple[Line, ...] = ()
    lines_lost: int = 0

    @property
    def compute_s(self) -> float:
        """Seconds on the worker that were neither reading nor writing."""
        return max(self.seconds - self.read_s - self.write_s, 0.0)


class Running(Struct, frozen=True, kw_only=True, array_like=True):
    """An order that a worker is executing, and the pixels it reported."""

    job_id: str
    number: int
    token: int
    pixels: int


# ---------------------------------------------------------------------------------------------------------------------
# On a worker


_SILENT_S = 60.0

_cancelled: dict[str, frozenset[str]] = {}
_heard_at: dict[str, float] = {}  # when each of these senders spoke last
_running: dict[tuple[str, int, int], int] = {}
_worker = f"{socket.gethostname()}:{os.getpid()}"


def run_order(data: bytes) -> bytes:
    """Execute a `ShardOrder`; never raises what a method raises."""
    order = msgspec.msgpack.decode(data, type=ShardOrder)
    started = time.perf_counter()
    _reset_peak()
    _running[order.run] = 0
    part, result, failure, is_bystander = None, None, None, False
    with Witness(keeps_spans=tracing.is_on()) as notes, _span(order) as span:
        try:
            part = msgspec.msgpack.encode(_execute(order, order.run))
            if order.merge_prefix:
                result = msgspec.msgpack.encode(_execute(_merge_of(order, part), order.run))
            faults.reached("written")
        except ComputeError as error:
            part, failure = None, _failure(error)
            # Dask runs an order again whose worker died after it, before the answer was fetched. The first run's part
            # is lost, so another token has to write it anew, but the shard is not to blame.
            is_bystander = isinstance(error, AttemptExists)
        except MemoryError:
            part, failure = None, _failure(ShardOutOfMemory(f"Shard {order.number} ran out of memory."))
        except Exception as error:  # noqa: BLE001 - whatever a method does wrong is told as data
            part = None
            failure = Failure(
                kind="defect",
                code="internal_fault",
                message=f"{order.label} failed unexpectedly ({type(error).__name__}); the logs tell more.",
                traceback=traceback.format_exc(limit=-12),
            )
        finally:
            pixels = _running.pop(order.run)
        seconds = time.perf_counter() - started
        outcome = "completed" if failure is None else failure.kind
        meters.note_end(order.label, outcome, notes, span, seconds=seconds, pixels=pixels, worker=_worker)
    return msgspec.msgpack.encode(
        Outcome(
            part=part,
            failure=failure,
            seconds=seconds,
            read_s=notes.read_s,
            write_s=notes.write_s,
            read_bytes=notes.read_bytes,
            written_bytes=notes.written_bytes,
            peak_rss_bytes=_peak_rss_bytes(),
            worker=_worker,
            is_bystander=is_bystander,
            pixels=pixels,
            result=result,
            lines=tuple(notes.lines),
            lines_lost=notes.lines_lost,
        ),
        enc_hook=repr,
    )


def _span(order: ShardOrder) -> tracing.Span:
    name = "run" if order.number > MERGE else "merge" if order.number == MERGE else "turn"
    about: dict[str, tracing.Value] = {"job": order.job_id, "shard": order.number, "token": order.token}
    return tracing.span(f"{name} {order.label}", parent=order.traceparent, kind="CONSUMER", attributes=about)


def _merge_of(order: ShardOrder, part: bytes) -> ShardOrder:
    return msgspec.structs.replace(order, number=MERGE, prefix=order.merge_prefix, body=b"", parts=(part,))


def _execute(order: ShardOrder, run: tuple[str, int, int]) -> Any:
    if order.build != build():
        raise ShardFault(f"The dispatcher sent build {order.build}; the worker runs {build()} and refuses it.")
    params, inputs = _decoded(order.task, order.inputs, order.shared)
    chosen = method.get(params.__struct_config__.tag)

    def advance(pixels: int) -> None:
        _running[run] += pixels

    names = {order.job_id, run_name(run)}
    attempt = Attempt(
        order.prefix,
        is_cancelled=lambda: any(not names.isdisjoint(each) for each in _cancelled.values()),
        on_progress=advance,
        halvings=order.halvings,
    )
    attempt.advance(0)
    if order.number > MERGE:
        return chosen.run(params, inputs, order.body, attempt)
    parts = [msgspec.msgpack.decode(part, type=Part) for part in order.parts]
    faults.reached("merge")
    if order.number < MERGE and chosen.turn is None:
        raise TypeError(f"{chosen.id} plans later rounds and has no turn")
    try:
        if chosen.turn is not None and order.number < MERGE:
            return chosen.turn(params, inputs, MERGE - order.number, parts, attempt)
        return chosen.merge(params, inputs, parts, attempt)
    except Exception as error:
        places = [place for place, part in enumerate(parts) if not all(map(is_whole, part.objects.values()))]
        if not places:
            raise
        lost = f"What {len(places)} of {len(parts)} shards handed on is gone or not whole; they run again."
        raise PartsLost(lost, places=places) from error


class _Tagged(Struct):
    method: str


@lru_cache(maxsize=4)
def _decoded(task: bytes, inputs: bytes, shared: str | None) -> tuple[Any, tuple[InputItem, ...]]:
    """Parameters and inputs, decoded once per worker and job rather than once per shard."""
    if shared is not None:
        task, inputs = msgspec.msgpack.decode(read_object(shared), type=tuple[bytes, bytes])
    tag = msgspec.json.decode(task, type=_Tagged).method
    # strict=False: numbers that JSON cannot hold (a nodata value of NaN) travel as strings
    params = msgspec.json.decode(task, type=method.get(tag).params, strict=False)
    return params, msgspec.msgpack.decode(inputs, type=tuple[InputItem, ...])


def _failure(error: ComputeError) -> Failure:
    kind: Literal["request", "source", "cancelled", "memory", "machine"] = "machine"
    if isinstance(error, RequestFault):
        kind = "request"
    elif isinstance(error, SourceFault):
        kind = "source"
    elif isinstance(error, ShardOutOfMemory):
        kind = "memory"
    elif error.code == "cancelled":
        kind = "cancelled"
    return Failure(
        kind=kind,
        code=error.code,
        message=error.message,
        pointer=error.pointer,
        data=error.data,
        traceback=traceback.format_exc(limit=-12),
    )


def _reset_peak() -> None:
    """Start the kernel's record of the process's peak afresh; where it cannot be, the peak is the process's whole."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_rss_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024


def run_name(run: tuple[str, int, int]) -> str:
    """One try, as a word."""
    return "/".join(map(str, run))


def pulse(cancelled: list[str], sender: str = "") -> list[tuple[str, int, int, int]]:
    """Take the ids of jobs and names of tries to give up, tell what runs here, whoever sent it.

    What one sender gives up another's pulse does not bring back. Of a sender that is silent nothing is remembered but
    what still runs here: dispatchers come and go, and workers stay. It runs on the worker's event loop, so while shards
    compute too.
    """
    global _cancelled  # noqa: PLW0603 - replaced whole: attempts read it on their own threads
    now, running = time.monotonic(), list(_running.items())
    here = {name for run, _ in running for name in (run[0], run_name(run))}
    others = {
        name: each if now - _heard_at[name] < _SILENT_S else each & here
        for name, each in _cancelled.items()
        if name != sender
    }
    given_up = others | {sender: frozenset(cancelled)}
    _cancelled = {name: each for name, each in given_up.items() if each}
    _heard_at[sender] = now
    for name in _heard_at.keys() - _cancelled.keys():
        del _heard_at[name]
    return [(*run, pixels) for run, pixels in running]


def dask_setup(worker: Worker) -> None:
    """Make a worker ready before it takes work: methods imported, drivers registered, kernels compiled, on one thread.

    Workers of a machine take turns: numba's cache does not bear two processes writing the same entry (numba#9348).
    """
    witness.listen()
    tracing.configure("eorouter-worker", os.environ.get(tracing.ENDPOINT, ""))
    with locket.lock_file(str(Path(worker.local_directory).parent / "warm-up.lock"), timeout=600):
        method.methods()
        raster.warm_up()
        eorouter_kernels.warm_up()


def dask_teardown(worker: Worker) -> None:
    """Send the spans that wait."""
    tracing.shut_down()
