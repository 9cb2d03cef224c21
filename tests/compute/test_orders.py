import pytest

from eorouter_compute import orders
from eorouter_compute.orders import pulse


@pytest.fixture(autouse=True)
def _nothing_cancelled(monkeypatch):
    monkeypatch.setattr(orders, "_cancelled", {})


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(orders.time, "monotonic", lambda: Clock.now)
    return Clock


def given_up():
    return {name for _, names in orders._cancelled.values() for name in names}


class TestPulse:
    def test_pulse_of_one_sender_leaves_what_another_gave_up(self):
        pulse(["job_a"], "one")
        pulse(["job_b", "job_c/3/1"], "two")
        assert given_up() == {"job_a", "job_b", "job_c/3/1"}
        pulse([], "one")
        assert given_up() == {"job_b", "job_c/3/1"}

    def test_pulse_forgets_a_sender_that_says_nothing_any_more(self, clock):
        pulse(["job_a"], "gone")
        clock.now += orders._SENDER_LIFE_S - 1
        pulse([], "here")
        assert given_up() == {"job_a"}
        clock.now += 2
        pulse([], "here")
        assert orders._cancelled == {}
