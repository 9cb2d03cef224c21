"""A third-party method, installed like one: it sums numbers, and misbehaves on request.

Each shard writes an object with its numbers; the merge reads all of them, so a result depends on every shard's bytes.
"""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from eorouter_compute.attempt import local_path, read_object
from eorouter_compute.errors import InvalidParameter, ShardFault, SourceTruncated
from eorouter_compute.method import (
    Bound,
    Kind,
    Method,
    OutputAsset,
    OutputItem,
    Params,
    Part,
    Plan,
    Result,
    Retries,
    Shard,
)

PIXELS = 1000
Ill = Literal[
    "request",
    "source",
    "fault",
    "defect",
    "die",
    "die_once",
    "deaf",
    "memory",
    "full",
    "odd",
    "forgets",
    "forgets_once",
]


class ToyParams(Params, tag="toy"):
    """Sum the numbers of every shard.

    rounds: how often the shards run, each number one higher than in the round before.

    shards: how many; blocks, block_s: steps a shard takes and their length in seconds; ills: what goes wrong, by shard
    number; marker: folder where a shard leaves a file when it starts; padding: ballast in the request.
    """

    shards: Annotated[int, Meta(ge=0, le=5000)] = 1
    blocks: Annotated[int, Meta(ge=1)] = 1
    block_s: float = 0.0
    ills: Mapping[str, Ill] = msgspec.field(default_factory=dict)
    marker: str | None = None
    makes_item: bool = True
    rounds: Annotated[int, Meta(ge=1, le=5)] = 1
    memory_bytes: int = 0
    padding: str = ""


def plan(params, inputs):
    if params.shards == 4999:
        raise InvalidParameter("4999 is not a number of shards.", pointer="/shards")
    bound = Bound(pixels=PIXELS, memory_bytes=params.memory_bytes, seconds=params.blocks * params.block_s)
    shards = tuple(Shard(body=msgspec.msgpack.encode(number), bound=bound) for number in range(params.shards))
    whole = Bound(pixels=PIXELS * len(shards), bytes_written=PIXELS * len(shards))
    return Plan(shards=shards, merge_bound=Bound(pixels=10), later=(whole,) * (params.rounds - 1))


def turn(params, inputs, number, parts, attempt):
    assert 1 <= number < params.rounds
    bound = Bound(pixels=PIXELS, bytes_written=PIXELS)
    numbers = [msgspec.msgpack.decode(part.body, type=int) + 1 for part in parts]
    forget(params, [number - 1 for number in numbers], parts)
    assert all(len(read_object(part.objects["numbers"].href)) == PIXELS for part in parts)
    return [Shard(body=msgspec.msgpack.encode(number), bound=bound) for number in numbers]


def run(params, inputs, body, attempt):
    number = msgspec.msgpack.decode(body, type=int)
    if params.marker:
        (Path(params.marker) / f"{number}-{os.getpid()}").touch()
    misbehave(params, number)
    for _ in range(params.blocks):
        time.sleep(params.block_s)
        attempt.advance(PIXELS // params.blocks)
    ref = attempt.write("numbers.bin", bytes([number % 251]) * PIXELS)
    return Part(body=msgspec.msgpack.encode(number), objects={"numbers": ref})


def misbehave(params, number):
    ill = params.ills.get(str(number))
    raised = {
        "request": InvalidParameter(f"Number {number} is not liked.", pointer="/ills"),
        "source": SourceTruncated("The file ends early.", source="scene"),
        "fault": ShardFault("The machine is tired."),
        "odd": ShardFault("The machine is odd.", at=Path("here"), size=3),
        "full": MemoryError(),
        "defect": KeyError("a bug"),
    }
    if ill in raised:
        raise raised[ill]
    if ill == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if ill == "die_once":
        try:
            (Path(params.marker) / f"died-{number}").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
    if ill == "deaf":
        time.sleep(600)
    if ill == "memory":
        hoard = []
        while True:
            hoard.append(bytes([1]) * (32 << 20))
            time.sleep(0.02)


def forget(params, numbers, parts):
    """What a lost machine does to objects that nobody waited for."""
    for number, part in zip(numbers, parts, strict=True):
        ill, path = params.ills.get(str(number)), local_path(part.objects["numbers"].href)
        if ill == "forgets" or (ill == "forgets_once" and path.parent.name == "1"):  # the first token's
            path.unlink()


def merge(params, inputs, parts, attempt):
    numbers = [msgspec.msgpack.decode(part.body, type=int) for part in parts]
    summary = {"sum": sum(numbers), "numbers": len(numbers)}
    if not params.makes_item:
        return Result(summary=summary)
    forget(params, numbers, parts)
    data = b"".join(read_object(part.objects["numbers"].href) for part in parts)
    asset = OutputAsset(
        key="sums", object=attempt.write("sums.bin", data), media_type="application/octet-stream",
        roles=("data",), filename="sums.bin",
    )  # fmt: skip
    footprint = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
    item = OutputItem(name="sums", assets=(asset,), footprint=footprint, bbox=(0, 0, 1, 1))
    return Result(items=(item,), summary=summary)


METHOD = Method(
    id="toy", title="Toy sum", makes=Kind.TABLE, params=ToyParams, plan=plan, run=run, merge=merge, turn=turn,
    item_limit=3, retries=Retries(backoff_s=0.05),
    examples=({"method": "toy", "shards": 2},),
)  # fmt: skip
