"""The life of a job is exactly the drawing in `states`."""

from itertools import product

import pytest

from eorouter.jobs.states import TERMINAL, TRANSITIONS, InvalidTransition, JobEvent, JobState, advance

DRAWN = {
    "created": {"job.queued": "queued", "job.cancelled": "cancelled"},
    "queued": {"job.started": "running", "job.cancelled": "cancelled"},
    "running": {"job.publishing": "publishing", "job.failed": "failed", "job.cancelled": "cancelled"},
    "publishing": {"job.completed": "completed", "job.failed": "failed"},
    "completed": {},
    "failed": {},
    "cancelled": {},
}


@pytest.mark.parametrize(("state", "event"), list(product(JobState, JobEvent)))
def test_advance_every_pair_follows_the_drawing(state, event):
    after = DRAWN[state].get(event)
    if after is not None:
        assert advance(state, event) == after
        return
    with pytest.raises(InvalidTransition) as refused:
        advance(state, event)
    assert repr(state.value) in str(refused.value)
    assert all(before in str(refused.value) for before, ways in DRAWN.items() if event in ways)


def test_transitions_terminal_states_have_no_way_out_and_all_others_reach_one():
    assert {state for state in JobState if not DRAWN[state]} == TERMINAL
    for state in set(JobState) - TERMINAL:
        reached, frontier = set(), {state}
        while frontier:
            reached |= frontier
            frontier = {after for (before, _), after in TRANSITIONS.items() if before in frontier} - reached
        assert reached & TERMINAL
