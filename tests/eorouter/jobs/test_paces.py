"""What was learnt of shards."""

import pytest

from eorouter.jobs.paces import Costs, Pace, mean


def test_pace_of_short_shards_takes_a_part_of_a_place():
    pace = Pace()
    assert pace.load == 1.0
    pace.learn(0.025)
    assert pace.load == pytest.approx(0.25)
    pace.learn(100.0)
    assert pace.load == 1.0


def test_costs_count_the_way_there_and_back_of_short_shards():
    costs = Costs()
    for _ in range(200):
        costs.learn("quick", estimated_s=0.0, seconds=0.001, aloft_s=0.32, load=1 / 16)
        costs.learn("slow", estimated_s=2.0, seconds=3.0, aloft_s=5.9, load=1.0)
    assert costs.told()["quick"] == pytest.approx(1.0)  # 0.01 s of a thread per shard: two threads do 200 a second
    assert costs.told()["slow"] == pytest.approx(1.5)


def test_mean_of_several_dispatchers():
    assert mean([{"a": 1.0, "b": 3.0}, {"a": 2.0}]) == {"a": 1.5, "b": 3.0}
