"""Whose shard is next: start-time fair queueing over organisations, interactive work before batch work.

Every organisation has an account of the work it was given, in estimated seconds. The one with the least is served
next, so a flood by one delays another's first shard by at most the shards already in flight. An organisation that was
away comes back at the level of the least served one that waits: idleness is not saved up.
"""

from collections.abc import Mapping

INTERACTIVE_STREAK_MAX = 8
"""Interactive shards served in a row while batch work waits; then one batch shard is let through."""

_SHARD_COST_S = 0.01
"""Every shard costs at least this: a plan that estimates nothing must not be free."""

Lane = tuple[str, bool]
"""Organisation, and whether the work is interactive."""


class FairShare:
    """The accounts; kept in memory, because being forgotten with the process costs nobody more than a turn."""

    def __init__(self) -> None:
        self._served_s: dict[str, float] = {}
        self._streak = 0

    def next_lane(self, waiting: Mapping[Lane, object]) -> Lane:
        """Which of the lanes that have work is served next; `waiting` is not empty."""
        orgs = {org for org, _ in waiting}
        known = [self._served_s[org] for org in orgs if org in self._served_s]
        floor = min(known, default=0.0)
        for org in orgs:
            self._served_s.setdefault(org, floor)
        has_batch = any(not is_interactive for _, is_interactive in waiting)
        has_interactive = any(is_interactive for _, is_interactive in waiting)
        wants_interactive = has_interactive and not (has_batch and self._streak >= INTERACTIVE_STREAK_MAX)
        return min(
            (lane for lane in waiting if lane[1] is wants_interactive), key=lambda lane: (self._served_s[lane[0]], lane)
        )

    def charge(self, lane: Lane, cost_s: float) -> None:
        """Book a shard given to a lane."""
        org, is_interactive = lane
        self._served_s[org] = self._served_s.get(org, 0.0) + max(cost_s, _SHARD_COST_S)
        self._streak = self._streak + 1 if is_interactive else 0

    def settle(self, active: set[str]) -> None:
        """Forget organisations that have no open work."""
        for org in self._served_s.keys() - active:
            del self._served_s[org]
