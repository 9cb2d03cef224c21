"""What dispatchers learn of shards while they run: how long those of a job take, and those of a method cost.

The first sizes the window, the second makes a forecast: it is told with the heartbeat.
"""

from collections.abc import Iterable, Mapping

from eorouter.jobs.claims import FROM_THE_FIRST
from eorouter.jobs.fairness import SHARD_COST_S

WINDOW_PER_THREAD = 2.0
"""Shards with the cluster per thread: one that computes and one that waits at the worker."""

_FULL_LOAD_S = 0.1  # shards that take longer than this fill a place each,
_LEAST_LOAD = 1 / 16  # shorter ones share it: else the way there and back would take longer than the work
_MEMORY = 0.98  # part of what was known that a further shard leaves: the last fifty or so decide


class Pace:
    """What was learnt of a job's shards: how long one takes (a running mean), and up to where they were claimed."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.start = FROM_THE_FIRST

    @property
    def load(self) -> float:
        """Part of the window that a shard takes: the window is meant in time, not in number."""
        return 1.0 if self.seconds is None else min(max(self.seconds / _FULL_LOAD_S, _LEAST_LOAD), 1.0)

    def learn(self, seconds: float) -> None:
        """Take one more shard into the mean."""
        self.seconds = seconds if self.seconds is None else 0.8 * self.seconds + 0.2 * seconds


class Costs:
    """Thread-seconds that shards of each method cost here, the way there and back included, per estimated second."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def learn(self, method: str, *, estimated_s: float, seconds: float, aloft_s: float, load: float) -> None:
        """Take in one more shard that took `seconds` of a thread and `aloft_s` from its claim to its record.

        In a full window a place is worth half a thread, so the way there and back costs its part of that.
        """
        cost = max(seconds, aloft_s * load / WINDOW_PER_THREAD)
        spent, estimated = self._sums.get(method, (0.0, 0.0))
        self._sums[method] = (_MEMORY * spent + cost, _MEMORY * estimated + max(estimated_s, SHARD_COST_S))

    def told(self) -> dict[str, float]:
        """Cost per estimated second, by method."""
        return {method: round(spent / estimated, 6) for method, (spent, estimated) in self._sums.items()}


def mean(every: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """What several dispatchers learnt, together."""
    gathered: dict[str, list[float]] = {}
    for told in every:
        for method, cost in told.items():
            gathered.setdefault(method, []).append(cost)
    return {method: sum(costs) / len(costs) for method, costs in gathered.items()}
