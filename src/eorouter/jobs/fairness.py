"""Whose shard is next: start-time fair queueing over organisations, urgent work before batch work as far as it is fair.

Every organisation has an account of the work it was given, in estimated seconds divided by its weight. The one with the
least is served next, so a flood by one delays another's first shard by at most the shards already in flight. An
organisation that was away comes back at the level of the least served one that waits: idleness is not saved up.

Interactive work goes first on credit: an organisation may be ahead of the others by so many seconds and no more, so
that calling everything urgent brings nobody a larger share.
"""

from collections.abc import Mapping

INTERACTIVE_STREAK_MAX = 8
"""Interactive shards served in a row while batch work waits; then one batch shard is let through."""

URGENT_CREDIT_S = 20.0
"""How far an organisation may run ahead of the least served one with interactive work."""

SHARD_COST_S = 0.01
"""Every shard costs at least this: a plan that estimates nothing must not be free."""

Lane = tuple[str, bool]
"""Organisation, and whether the work is interactive."""


class FairShare:
    """The accounts; kept in memory, because being forgotten with the process costs nobody more than a turn."""

    def __init__(self) -> None:
        self._served_s: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._streak = 0

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Take over the weights of organisations; one that is not named weighs 1."""
        self._weights.update(weights)

    def next_lane(self, waiting: Mapping[Lane, object]) -> Lane:
        """Which of the lanes that have work is served next; `waiting` is not empty."""
        orgs = {org for org, _ in waiting}
        known = [self._served_s[org] for org in orgs if org in self._served_s]
        floor = min(known, default=0.0)
        for org in orgs:
            self._served_s.setdefault(org, floor)
        urgent = [lane for lane in waiting if lane[1] and self._served_s[lane[0]] <= floor + URGENT_CREDIT_S]
        has_batch = any(not is_interactive for _, is_interactive in waiting)
        if has_batch and self._streak >= INTERACTIVE_STREAK_MAX:
            lanes = [lane for lane in waiting if not lane[1]]
        else:
            lanes = urgent or list(waiting)
        return min(lanes, key=lambda lane: (self._served_s[lane[0]], not lane[1], lane[0]))

    def charge(self, lane: Lane, cost_s: float) -> None:
        """Book a shard given to a lane."""
        org, is_interactive = lane
        cost_s = max(cost_s, SHARD_COST_S) / self._weights.get(org, 1.0)
        self._served_s[org] = self._served_s.get(org, 0.0) + cost_s
        self._streak = self._streak + 1 if is_interactive else 0

    def add(self, lane: Lane, cost_s: float) -> None:
        """Book what turned out to come along with a shard that was charged already."""
        self._served_s[lane[0]] = self._served_s.get(lane[0], 0.0) + cost_s / self._weights.get(lane[0], 1.0)

    def settle(self, active: set[str]) -> None:
        """Forget organisations that have no open work."""
        for org in self._served_s.keys() - active:
            del self._served_s[org]
            self._weights.pop(org, None)
