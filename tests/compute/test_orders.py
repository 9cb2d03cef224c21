"""Orders executed in this process: bytes in, bytes out, and every way to fail told as data."""

from pathlib import Path

import msgspec
import pytest

from eorouter_compute import method, orders
from eorouter_compute.attempt import local_path, read_object
from eorouter_compute.method import Part, Result, Shard
from eorouter_compute.orders import MERGE, Outcome, ShardOrder, pulse

TOYS = Path(__file__).resolve().parents[1] / "toys"


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The toy method, installed."""
    monkeypatch.syspath_prepend(str(TOYS))
    method.methods.cache_clear()
    yield
    method.methods.cache_clear()


@pytest.fixture(autouse=True)
def nobody_gave_up():
    """What these tests give up is taken back."""
    yield
    for sender in ("", "one", "other"):
        pulse([], sender)


@pytest.fixture
def order(tmp_path):
    """Make an order of a toy job."""
    tokens = iter(range(1, 100))

    def make(number=0, *, job_id="job", merge_prefix="", parts=(), task=None, **fields):
        token = next(tokens)
        return ShardOrder(
            job_id=job_id, number=number, token=token, label="toy", prefix=f"file://{tmp_path}/{number}/{token}/",
            task=msgspec.json.encode(task or {"method": "toy", **fields}), inputs=msgspec.msgpack.encode([]),
            body=msgspec.msgpack.encode(number), parts=parts, merge_prefix=merge_prefix,
        )  # fmt: skip

    return make


def run(order: ShardOrder) -> Outcome:
    return msgspec.msgpack.decode(orders.run_order(msgspec.msgpack.encode(order)), type=Outcome)


def test_a_shard_answers_with_its_part_and_what_it_took(order):
    outcome = run(order(3, blocks=4))
    assert outcome.failure is None
    part = msgspec.msgpack.decode(outcome.part, type=Part)
    assert bytes(read_object(part.objects["numbers"].href)) == bytes([3]) * 1000
    assert (outcome.pixels, outcome.written_bytes, outcome.read_bytes) == (1000, 1000, 0)
    assert outcome.compute_s == pytest.approx(outcome.seconds - outcome.read_s - outcome.write_s)
    assert outcome.write_s > 0
    assert outcome.peak_rss_bytes > 10 << 20
    assert outcome.result is None
    assert [line for line in outcome.lines if b"shard.completed" in msgspec.json.encode(line)]
    assert pulse([]) == []


def test_rounds_go_through_a_turn_to_the_merge(order):
    first = tuple(run(order(number, rounds=2)).part for number in range(3))
    turned = run(order(MERGE - 1, parts=first, rounds=2))
    shards = msgspec.msgpack.decode(turned.part, type=list[Shard])
    assert [msgspec.msgpack.decode(shard.body) for shard in shards] == [1, 2, 3]
    second = []
    for number, shard in enumerate(shards):
        second.append(run(msgspec.structs.replace(order(number, rounds=2), body=shard.body)).part)
    merged = run(order(MERGE, parts=tuple(second), rounds=2))
    result = msgspec.msgpack.decode(merged.part, type=Result)
    assert result.summary == {"sum": 6, "numbers": 3}
    data = read_object(result.items[0].assets[0].object.href)
    assert bytes(data) == b"".join(bytes([number]) * 1000 for number in (1, 2, 3))
    assert merged.read_bytes == merged.written_bytes == 3000


@pytest.mark.parametrize(("stump", "is_lost"), [(None, True), (b"short", True), (bytes([1]) * 1000, False)])
def test_a_merge_that_fails_tells_whose_objects_are_gone(order, stump, is_lost, monkeypatch):
    parts = tuple(run(order(number)).part for number in range(3))
    path = local_path(msgspec.msgpack.decode(parts[1], type=Part).objects["numbers"].href)
    path.unlink()
    if stump is not None:
        path.write_bytes(stump)
        monkeypatch.setattr("toy_method.read_object", lambda _: 1 / 0)
    failure = run(order(MERGE, parts=parts)).failure
    if not is_lost:
        assert (failure.kind, failure.code) == ("defect", "internal_fault")
        return
    assert (failure.kind, failure.code, failure.data) == ("machine", "parts_lost", {"places": [1]})
    assert "1 of 3 shards" in failure.message


def test_a_turn_of_a_method_that_has_none_is_a_defect(order):
    clip = method.get("clip")
    assert clip.turn is None
    failure = run(order(MERGE - 1, task=clip.examples[0])).failure
    assert failure.kind == "defect"
    assert "has no turn" in failure.traceback


def test_the_only_shard_of_a_job_is_merged_along_with_it(order, tmp_path):
    outcome = run(order(5, merge_prefix=f"file://{tmp_path}/merged/"))
    result = msgspec.msgpack.decode(outcome.result, type=Result)
    assert result.summary == {"sum": 5, "numbers": 1}
    assert result.items[0].assets[0].object.href.startswith(f"file://{tmp_path}/merged/")
    again = run(order(5, merge_prefix=f"file://{tmp_path}/merged/"))
    assert (again.part, again.result, again.failure.code, again.is_bystander) == (None, None, "attempt_exists", True)


@pytest.mark.parametrize(
    ("ill", "kind", "code"),
    [("request", "request", "invalid_parameter"), ("source", "source", "source_truncated"),
     ("fault", "machine", "compute_error"), ("full", "memory", "job_out_of_memory"),
     ("defect", "defect", "internal_fault")],
)  # fmt: skip
def test_what_a_method_does_wrong_is_told_as_data(order, ill, kind, code):
    outcome = run(order(2, ills={"2": ill}))
    assert (outcome.part, outcome.result) == (None, None)
    assert (outcome.failure.kind, outcome.failure.code) == (kind, code)
    assert not outcome.is_bystander
    assert pulse([]) == []
    assert run(order(1, ills={"2": ill})).failure is None


def test_failures_carry_where_and_what_and_hide_the_traceback_from_the_message(order):
    assert run(order(2, ills={"2": "request"})).failure.pointer == "/ills"
    assert run(order(2, ills={"2": "source"})).failure.data == {"source": "scene"}
    odd = run(order(2, ills={"2": "odd"})).failure
    assert odd.data == {"at": repr(Path("here")), "size": 3}
    defect = run(order(2, ills={"2": "defect"})).failure
    assert "a bug" in defect.traceback
    assert "a bug" not in defect.message


def test_a_method_that_is_not_installed_is_the_callers_to_mend(order):
    failure = run(order(task={"method": "nothing"})).failure
    assert (failure.kind, failure.code, failure.pointer) == ("request", "unknown_method", "/task/method")


def test_another_build_is_refused_and_named(order):
    failure = run(msgspec.structs.replace(order(), build="0.0+other")).failure
    assert failure.kind == "machine"
    assert "0.0+other" in failure.message
    assert orders.build() in failure.message


def test_numbers_that_json_cannot_hold_travel_as_words(order):
    (tail,) = (msgspec.msgpack.decode(run(order(1, shards="3", block_s="0.0")).part, type=Part).body,)
    assert msgspec.msgpack.decode(tail) == 1


def test_shared_parameters_are_read_from_their_object(order, tmp_path):
    (tmp_path / "shared").write_bytes(
        msgspec.msgpack.encode((msgspec.json.encode({"method": "toy", "ills": {"5": "source"}}),
                                msgspec.msgpack.encode([])))
    )  # fmt: skip
    shared = msgspec.structs.replace(order(5), task=b"", inputs=b"", shared=f"file://{tmp_path}/shared")
    assert run(shared).failure.code == "source_truncated"


def test_a_job_and_a_try_are_given_up_by_name_and_nothing_else_is(order):
    first, second = order(job_id="job_a"), order(job_id="job_a")
    pulse([orders.run_name(first.run)], "one")
    assert run(first).failure.kind == "cancelled"
    assert run(second).failure is None
    pulse(["job_a"], "one")
    assert run(order(job_id="job_a")).failure.code == "cancelled"
    assert run(order(MERGE, job_id="job_a", makes_item=False)).failure.code == "cancelled"
    assert run(order(job_id="job_ab")).failure is None


def test_what_one_gives_up_only_he_brings_back(order):
    pulse(["job_a"], "one")
    pulse(["job_b"], "other")
    assert run(order(job_id="job_a")).failure.kind == "cancelled"
    pulse([], "other")
    assert run(order(job_id="job_a")).failure.kind == "cancelled"
    assert run(order(job_id="job_b")).failure is None
    pulse([], "one")
    assert run(order(job_id="job_a")).failure is None


def test_seconds_of_a_stage_never_make_the_rest_negative():
    assert Outcome(seconds=1.0, read_s=0.75, write_s=0.5).compute_s == 0.0
    assert Outcome(seconds=2.0, read_s=0.75, write_s=0.5).compute_s == 0.75


def test_pulse_forgets_what_silent_senders_gave_up_unless_it_runs_here(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(orders.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(orders, "_cancelled", {})
    monkeypatch.setattr(orders, "_heard_at", {})
    monkeypatch.setattr(orders, "_running", {("job_here", 0, 1): 5})
    for number in range(500):
        now[0] += 1.0
        pulse([f"job_{number}", "job_here"], f"dispatcher_{number}")
    assert len(orders._cancelled["dispatcher_0"]) == 1
    assert len(orders._cancelled["dispatcher_499"]) == 2
    orders._running.clear()
    now[0] += 100.0
    assert pulse([], "another") == []
    assert (orders._cancelled, orders._heard_at) == ({}, {})
