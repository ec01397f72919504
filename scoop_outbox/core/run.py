"""Facts: what was read about a run when it was claimed."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from scoop_outbox._deadlines import NONE, Deadline, Deadlines
from scoop_outbox.failure import Failure, Frame
from scoop_outbox.strategy import Outlook


class RunState(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    ROLLING_BACK = "rolling_back"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_FAILED = "rollback_failed"
    PARKED = "parked"

    @property
    def ended(self) -> bool:
        """Whether nothing will happen any more unless somebody asks for it."""
        return self not in (RunState.RUNNING, RunState.ROLLING_BACK)


class ChildState(StrEnum):
    """Where an expected child stands, as its parent knows it."""

    WAITING = "waiting"
    STARTED = "started"
    CANCELLING = "cancelling"
    ROLLING_BACK = "rolling_back"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_FAILED = "rollback_failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    LEFT_BEHIND = "left_behind"


RUN_TRANSITIONS: Mapping[tuple[RunState, RunState], str] = {
    (RunState.RUNNING, RunState.COMMITTED): "the last step and everything below it has finished",
    (RunState.RUNNING, RunState.ROLLING_BACK): "a step or a child failed, or it gave up",
    (RunState.RUNNING, RunState.PARKED): "it was interrupted too often, or no worker knows the step that is due",
    (RunState.PARKED, RunState.RUNNING): "somebody retried it, or a worker came that knows the step",
    (RunState.COMMITTED, RunState.ROLLING_BACK): "the parent ordered it, or somebody asked for it",
    (RunState.ROLLING_BACK, RunState.ROLLED_BACK): "every executed instance is undone",
    (RunState.ROLLING_BACK, RunState.ROLLBACK_FAILED): "a compensation or the rollback of a child failed",
    (RunState.ROLLING_BACK, RunState.PARKED): "it was interrupted too often, or no worker knows the step to be undone",
    (RunState.PARKED, RunState.ROLLING_BACK): "likewise; or it was cancelled",
    (RunState.PARKED, RunState.ROLLBACK_FAILED): "somebody abandoned it",
    (RunState.ROLLBACK_FAILED, RunState.ROLLING_BACK): "somebody retried it or skipped what failed, or that of a child",
}
"""Every change of a run's state that is allowed, and why it happens."""

CHILD_TRANSITIONS: Mapping[tuple[ChildState, ChildState], str] = {
    (ChildState.WAITING, ChildState.STARTED): "its message was taken in",
    (ChildState.WAITING, ChildState.ROLLED_BACK): "its saga was forgotten, or it had not started by its deadline",
    (ChildState.WAITING, ChildState.CANCELLING): "the parent gave up, or its deadline passed: its home is asked",
    (ChildState.CANCELLING, ChildState.CANCELLED): "its home has said that its message will start nothing",
    (ChildState.WAITING, ChildState.SKIPPED): "its saga was forgotten, and what waited for it was skipped",
    (ChildState.WAITING, ChildState.CANCELLED): "the parent gave up: its message, when it comes, starts nothing",
    (ChildState.WAITING, ChildState.LEFT_BEHIND): "the parent's strategy does not wait for it: it may start a late run",
    (ChildState.STARTED, ChildState.LEFT_BEHIND): "likewise, before it had executed anything: its run is a late one",
    (ChildState.STARTED, ChildState.CANCELLING): "the parent gave up, and told it to",
    (ChildState.CANCELLING, ChildState.COMMITTED): "its run had finished before it was told",
    (ChildState.CANCELLING, ChildState.ROLLED_BACK): "its run gave up, or failed, and rolled back",
    (ChildState.CANCELLING, ChildState.ROLLBACK_FAILED): "its run could not roll back",
    (ChildState.CANCELLING, ChildState.SKIPPED): "its saga was forgotten before its run had executed anything",
    (ChildState.STARTED, ChildState.SKIPPED): "likewise, before its run had executed anything",
    (ChildState.STARTED, ChildState.COMMITTED): "its run committed",
    (ChildState.STARTED, ChildState.ROLLED_BACK): "its run failed and rolled back",
    (ChildState.STARTED, ChildState.ROLLBACK_FAILED): "its run failed and could not roll back",
    (ChildState.COMMITTED, ChildState.ROLLING_BACK): "the parent ordered it, or somebody asked for it",
    (ChildState.ROLLING_BACK, ChildState.ROLLED_BACK): "its run rolled back",
    (ChildState.ROLLING_BACK, ChildState.ROLLBACK_FAILED): "its run could not roll back",
    (ChildState.ROLLBACK_FAILED, ChildState.ROLLING_BACK): "its run goes on, and the parent has not handled it",
}
"""Every change of a child's state, as its parent knows it, and why it happens."""


class StepKind(StrEnum):
    """What a row of `step` is an execution of."""

    STEP = "step"
    CHILD_FAILURE_HANDLER = "child_failure_handler"
    COMPENSATION = "compensation"
    FINALISER = "finaliser"


@dataclass(frozen=True)
class Run:
    """A run as it is stored, or as it shall be stored.

    Attributes:
        step: the step whose execution the run is suspended in, None before the first.
        next_step: the step to execute next, None after the last one.
        seq: the number of the newest row of `step`, 0 before the first.
        instance: the number of the execution that the run is suspended in; its children are waited for.
        iteration: how often in a row `step` had been executed before its newest execution.
        attempt: failed attempts of the callback that is due.
        handled: calls of the child-failure handler since `step` was executed; while rolling back, of the handler of
            rollback failures for the instance that is being undone, or in reverse for one message of it.
        not_before: a retry waits until then, or a run that sleeps.
        undo_seq: while rolling back, instances above this number are undone already.
        compensation_seq: while rolling back, the compensation whose children are waited for.
        handler_seq: while rolling back, the call of the handler of rollback failures whose children are waited for.
        body_seq: the execution of a step whose finaliser is to be called, until what that has launched has ended.
        finaliser_seq: the call of that finaliser whose children are waited for.
        undo_from: while rolling back, the newest execution that was passed over though it could not be undone.
        unresolved: why what was passed over could not be undone.
        context: the cooperation context as JSON text.
        inherited: the context of the parent that ordered the rollback, until it has been merged.
        failure: why the run rolls back or rolled back, or was to: what its compensations are told.
        obstacle: why it could not be rolled back.
        result: what `scope.set_result` left, as JSON text.
        reason: why the run is parked.
        lane: runs of one lane are executed one after the other; None when the run is not ordered.
        version: the version of its saga that the run belongs to; empty before its first step.
        interrupted: whether something is noted of executions that were interrupted, which progress takes away.
        needs: for a parked run, the step without which it cannot go on; it goes on by itself when somebody knows it.
        giving_up: why the run gives up, from when it has told its children until they have ended.
        deadlines: those that came with its message.
        own_deadline: what it has set itself with `scope.set_deadline`, and what its saga says.
        rollback_by: until when its rollback has to end.
        created_at: when its message was taken in.
        parent_home: the home in which it is waited for, if that is another one.
    """

    id: uuid.UUID
    message_id: uuid.UUID
    service: str
    saga: str
    lineage: tuple[uuid.UUID, ...]
    parent_run: uuid.UUID | None
    state: RunState
    step: str | None = None
    next_step: str | None = None
    seq: int = 0
    instance: int = 0
    iteration: int = 0
    attempt: int = 0
    handled: int = 0
    not_before: datetime | None = None
    undo_seq: int | None = None
    compensation_seq: int | None = None
    handler_seq: int | None = None
    context: str | None = None
    inherited: str | None = None
    failure: Failure | None = None
    obstacle: Failure | None = None
    result: str | None = None
    launched_at: Frame | None = None
    reason: str | None = None
    lane: uuid.UUID | None = None
    version: str = ""
    interrupted: bool = False
    needs: str | None = None
    giving_up: Failure | None = None
    deadlines: Deadlines = NONE
    own_deadline: Deadline | None = None
    rollback_by: datetime | None = None
    body_seq: int | None = None
    finaliser_seq: int | None = None
    undo_from: int | None = None
    unresolved: Failure | None = None
    created_at: datetime | None = None
    parent_home: uuid.UUID | None = None

    @property
    def told(self) -> Failure | None:
        """What the run has failed with, if it has: why it could not be rolled back goes before why it was to be."""
        return self.failure if self.obstacle is None else self.obstacle

    @property
    def late(self) -> bool:
        """Whether it was launched by a run that does not wait for it: its saga was subscribed only afterwards."""
        return self.parent_run is None and len(self.lineage) > 1


if TYPE_CHECKING:
    changed = replace
else:

    def changed(run: Run, **changes: Any) -> Run:
        """Return a run with other values: as `dataclasses.replace`, which needs 17 us for so many, at every step."""
        after = object.__new__(Run)
        after.__dict__.update(run.__dict__, **changes)
        return after


@dataclass(frozen=True, slots=True)
class Child:
    """A child that has ended and has something to tell: a failure or a result.

    Attributes:
        failure: why it rolled back, or was to.
        obstacle: why it could not be rolled back.
        delivered: whether its parent was told on its way forward that it could not be rolled back.
    """

    message_id: uuid.UUID
    saga: str
    state: ChildState
    ordinal: int
    result: str | None = None
    failure: Failure | None = None
    obstacle: Failure | None = None
    failed_at: datetime | None = None
    delivered: bool = False

    @property
    def stuck(self) -> bool:
        """Whether it could not be rolled back."""
        return self.state is ChildState.ROLLBACK_FAILED

    @property
    def failed(self) -> bool:
        """Whether it did not commit."""
        return self.state in (ChildState.ROLLED_BACK, ChildState.ROLLBACK_FAILED)


@dataclass(frozen=True, slots=True)
class Instance:
    """The step instance to be undone next, and what is known of its children.

    Attributes:
        askable: whether some of its children are committed and must be asked to roll back first.
        stuck: those that could not be rolled back, and that nobody has handled.
        compensation_children: failed children of the compensation attempt `Run.compensation_seq`.
        handler_children: failed children of the handler's call `Run.handler_seq`.
        handled: what that call was for.
        elsewhere: whether some of the children that are to be asked live in other homes.
    """

    seq: int
    step: str
    kind: StepKind
    iteration: int
    askable: bool = False
    stuck: tuple[Child, ...] = ()
    compensation_children: tuple[Child, ...] = ()
    handler_children: tuple[Child, ...] = ()
    handled: Failure | None = None
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """The execution of a step whose finaliser is to be called, or has been called and waits for what it has launched.

    Attributes:
        children: failed children of the call `Run.finaliser_seq`.
    """

    seq: int
    step: str
    iteration: int
    children: tuple[Child, ...] = ()

    def raised(self, run: Run) -> bool:
        """Tell whether the execution has failed: then the run is still suspended in the one before it."""
        return self.seq > run.instance


@dataclass(frozen=True, slots=True)
class Outside:
    """What somebody outside has said about the work of an external participant.

    Attributes:
        result: as JSON text, if it is completed and there is one.
        failure: why it has failed; None when it is completed.
    """

    result: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that `decide` may look at, read under the run's row lock after its mail was read.

    Attributes:
        now: the database's clock.
        open_children: whether some child has not ended, or is rolling back.
        children: ended children of the suspended instance that failed or left a result.
        instance: while rolling back, what is to be undone next; None when nothing is left.
        body: the execution whose finaliser comes before anything else; None when there is none.
        cancellation: why somebody asked the run to give up, if somebody did.
        untold: whether some open child does not know yet that the run gives up. Read only when it does.
        elsewhere: whether some open child lives in another home. Read with `untold`.
        deadline: until when the run has to commit.
        outlook: what the strategy of its saga looks at, if that has one.
        first_failure: the child that failed first, while others are open. Read only for a step that fails fast.
        child_deadline: the earliest time by which a child has to commit that has not started, if it has one of its own.
        outside: what was said about the work of an external participant; None for as long as nobody has.
    """

    now: datetime
    open_children: bool = False
    children: Sequence[Child] = field(default=())
    instance: Instance | None = None
    body: Body | None = None
    cancellation: Failure | None = None
    untold: bool = False
    deadline: Deadline | None = None
    child_deadline: datetime | None = None
    first_failure: Child | None = None
    outlook: Outlook | None = None
    outside: Outside | None = None
    elsewhere: bool = False

    @property
    def failed_children(self) -> list[Child]:
        """The failed children in the order in which they failed."""
        failed = [child for child in self.children if child.failed]
        return sorted(failed, key=lambda child: (child.failed_at is None, child.failed_at or self.now, child.ordinal))
