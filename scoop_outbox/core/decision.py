"""Decisions: what a run can do next, as values. `decide` chooses one, `execute` carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from scoop_outbox.core.run import Body, Instance
from scoop_outbox.failure import Failure
from scoop_outbox.step import Callback, Step
from scoop_outbox.strategy import OpenChild


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before news comes, or before a point in time."""

    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Invoke:
    """Execute the next step."""

    step: Step
    iteration: int


@dataclass(frozen=True, slots=True)
class Complete:
    """Commit with what somebody outside has completed the run with."""

    step: Step
    result: str | None


@dataclass(frozen=True, slots=True)
class HandleChildFailure:
    """Call the child-failure handler of the step that launched the failed children."""

    step: Step
    handler: Callback
    failure: Failure


@dataclass(frozen=True, slots=True)
class Finalise:
    """Call the finaliser of an execution of a step that has been left."""

    step: Step
    finaliser: Callback
    body: Body


@dataclass(frozen=True, slots=True)
class Finalised:
    """The finaliser has been called, and what it launched has finished, or it is not in the code any more."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """Begin to roll back, for this failure."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class CancelChildren:
    """Give up, for this reason: first tell the children that are open to give up."""

    reason: Failure


@dataclass(frozen=True, slots=True)
class ExpireChildren:
    """End children that have not started by a deadline of their own: they have failed."""

    deadline: datetime


@dataclass(frozen=True, slots=True)
class CancelSiblings:
    """A child has failed, and its step fails fast: the other children are told to give up."""

    reason: Failure


@dataclass(frozen=True, slots=True)
class LeaveBehind:
    """Wait no longer for children that have not started."""

    children: tuple[OpenChild, ...]


@dataclass(frozen=True, slots=True)
class AskChildren:
    """Order the committed children of an instance to roll back: all, or those of the last message."""

    instance: Instance
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class Compensate:
    """Call the compensation of an instance."""

    step: Step
    compensation: Callback
    instance: Instance


@dataclass(frozen=True, slots=True)
class HandleChildRollbackFailure:
    """Call the handler for children of an instance that could not be rolled back."""

    step: Step
    handler: Callback
    instance: Instance
    failure: Failure


@dataclass(frozen=True, slots=True)
class Handled:
    """What the handler for such children launched has finished: they count as compensated."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class CompensationFailed:
    """Children of a compensation failed: that attempt of the compensation has failed (behaviour Q46)."""

    step: Step
    instance: Instance
    failure: Failure


@dataclass(frozen=True, slots=True)
class PassOver:
    """Leave an instance that cannot be undone as it is, and undo the one before it."""

    instance: Instance
    failure: Failure


@dataclass(frozen=True, slots=True)
class Undone:
    """Nothing more is to be done to undo an instance."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class Commit:
    """The last step and everything below it has finished."""


@dataclass(frozen=True, slots=True)
class EndRolledBack:
    """Every executed instance is undone."""


@dataclass(frozen=True, slots=True)
class EndRollbackFailed:
    """The rollback cannot go on."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Park:
    """The run cannot go on: with `needs`, not before a worker knows that step; else not before somebody says so."""

    reason: str
    needs: str | None = None


Decision = (
    Wait
    | Invoke
    | Complete
    | HandleChildFailure
    | Finalise
    | Finalised
    | RollBack
    | CancelChildren
    | ExpireChildren
    | CancelSiblings
    | LeaveBehind
    | AskChildren
    | Compensate
    | HandleChildRollbackFailure
    | Handled
    | CompensationFailed
    | PassOver
    | Undone
    | Commit
    | EndRolledBack
    | EndRollbackFailed
    | Park
)


def needed(due: Decision) -> str | None:
    """Return the name of the step whose callbacks a decision is about; None when it calls nothing of the user's."""
    if isinstance(due, Park):
        return due.needs
    step = getattr(due, "step", None)
    return None if step is None else step.name
