"""The life of a job, as data.

    created ──dispatch──► queued ──start──► running ──publish──► publishing ──complete──► completed
       │                    │                  │ │                    │
       └──────cancel────────┴──────cancel──────┘ └───────fail─────────┴──► failed

A cancelled job ends in `cancelled`. Nothing leaves the three states on the right. A job that is publishing can no
longer be cancelled: its results are about to appear, whole.
"""

from enum import StrEnum
from types import MappingProxyType


class JobState(StrEnum):
    """Where a job stands; the docstring of the module draws the ways between."""

    CREATED = "created"
    QUEUED = "queued"
    RUNNING = "running"
    PUBLISHING = "publishing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobEvent(StrEnum):
    """What moves a job; each value is also the type of the event that is kept."""

    DISPATCH = "job.queued"
    START = "job.started"
    PUBLISH = "job.publishing"
    COMPLETE = "job.completed"
    FAIL = "job.failed"
    CANCEL = "job.cancelled"


class ShardState(StrEnum):
    """Where a shard stands: `waiting` for its job or the other shards, `leased` while a dispatcher answers for it."""

    WAITING = "waiting"
    READY = "ready"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"


class InvalidTransition(Exception):
    """The job is not in a state that allows this; the message tells which states do."""


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})

TRANSITIONS = MappingProxyType(
    {
        (JobState.CREATED, JobEvent.DISPATCH): JobState.QUEUED,
        (JobState.CREATED, JobEvent.CANCEL): JobState.CANCELLED,
        (JobState.QUEUED, JobEvent.START): JobState.RUNNING,
        (JobState.QUEUED, JobEvent.CANCEL): JobState.CANCELLED,
        (JobState.RUNNING, JobEvent.PUBLISH): JobState.PUBLISHING,
        (JobState.RUNNING, JobEvent.FAIL): JobState.FAILED,
        (JobState.RUNNING, JobEvent.CANCEL): JobState.CANCELLED,
        (JobState.PUBLISHING, JobEvent.COMPLETE): JobState.COMPLETED,
        (JobState.PUBLISHING, JobEvent.FAIL): JobState.FAILED,
    }
)


def advance(state: JobState, event: JobEvent) -> JobState:
    """The state after `event`.

    Raises:
        InvalidTransition: the event cannot happen in this state.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        before = sorted(source for source, possible in TRANSITIONS if possible is event)
        raise InvalidTransition(
            f"{event.value} cannot follow on state {state.value!r}; it follows on {' or '.join(before)}."
        ) from None
