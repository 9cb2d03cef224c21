"""Everybody's first shard comes soon, whatever others queue."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eorouter.jobs.fairness import INTERACTIVE_STREAK_MAX, URGENT_CREDIT_S, FairShare


def serve(share, waiting, count, costs=None):
    """Serve `count` shards from lanes that never run dry; returns the lanes in order."""
    served = []
    for _ in range(count):
        lane = share.next_lane(waiting)
        share.charge(lane, (costs or {}).get(lane[0], 1.0))
        served.append(lane)
    return served


def test_next_lane_newcomer_after_a_flood_is_served_next():
    share = FairShare()
    serve(share, {("a", False): 1}, 500)
    assert ("b", False) in serve(share, {("a", False): 1, ("b", False): 1}, 2)


def test_next_lane_newcomer_does_not_catch_up_on_time_it_was_away():
    share = FairShare()
    serve(share, {("a", False): 1}, 500)
    served = Counter(org for org, _ in serve(share, {("a", False): 1, ("b", False): 1}, 100))
    assert abs(served["a"] - served["b"]) <= 2


@given(st.dictionaries(st.sampled_from("abcde"), st.floats(0.1, 5.0), min_size=1))
def test_next_lane_any_costs_give_equal_time(costs):
    lanes = {(org, False): 1 for org in costs}
    share = FairShare()
    spent = Counter()
    for org, _ in serve(share, lanes, 400, costs):
        spent[org] += costs[org]
    assert max(spent.values()) - min(spent[org] for org in costs) <= 2 * max(costs.values())


def test_next_lane_interactive_goes_first_but_does_not_starve_batch():
    share = FairShare()
    served = serve(share, {("a", True): 1, ("b", False): 1}, 3 * (INTERACTIVE_STREAK_MAX + 1))
    assert served[:INTERACTIVE_STREAK_MAX] == [("a", True)] * INTERACTIVE_STREAK_MAX
    assert served.count(("b", False)) == 3


def test_next_lane_weight_is_a_share():
    share = FairShare()
    share.weigh({"a": 1.0, "b": 3.0})
    served = Counter(org for org, _ in serve(share, {("a", False): 1, ("b", False): 1}, 400))
    assert served["b"] == pytest.approx(300, abs=4)


def test_next_lane_urgency_is_credit_and_no_larger_share():
    share = FairShare()
    served = serve(share, {("a", True): 1, ("b", False): 1}, 2000)
    counts = Counter(org for org, _ in served)
    assert abs(counts["a"] - counts["b"]) <= URGENT_CREDIT_S + 2


@pytest.mark.parametrize("seed", range(20))
def test_one_shard_among_a_flood_waits_a_bounded_time(seed):
    """A day of random tenants on four workers: each newcomer's first shard begins soon, whatever the rest queued."""
    draw = random.Random(seed)
    share = FairShare()
    backlog = {"flood": 10_000}
    weights = {"flood": draw.choice([1.0, 5.0])}
    share.weigh(weights)
    waited = {}
    arrivals = sorted(draw.randrange(50, 3000) for _ in range(12))
    for turn in range(4000):
        while arrivals and arrivals[0] <= turn:
            arrivals.pop(0)
            backlog[f"small-{len(waited)}-{turn}"] = 1
            waited[f"small-{len(waited)}-{turn}"] = turn
        org, urgent = share.next_lane({(org, org == "flood"): 1 for org in backlog})
        share.charge((org, urgent), draw.uniform(0.5, 2.0))
        backlog[org] -= 1
        if org in waited:
            waited[org] = turn - waited[org]
        if not backlog[org]:
            del backlog[org]
    assert backlog.keys() == {"flood"}
    assert max(waited.values()) <= 12 * (INTERACTIVE_STREAK_MAX + 1)


def test_settle_forgets_those_without_work():
    share = FairShare()
    serve(share, {("a", False): 1, ("b", False): 1}, 10)
    share.settle({"b"})
    assert share.next_lane({("a", False): 1, ("b", False): 1})[0] == "a"
