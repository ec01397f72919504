"""A hierarchy as lines of text: runs, their executions, and below each execution those that it has launched."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from scoop_outbox.cli.options import in_one_line
from scoop_outbox.cli.output import failure_line, seconds_text, time_text
from scoop_outbox.core.run import ChildState, StepKind
from scoop_outbox.operations.runs import Hierarchy, Unstarted
from scoop_outbox.status import ActionStatus, ChildElsewhere, RunStatus, StepStatus

_INDENT = "  "
_UNSTARTED = {
    ChildState.WAITING: "not started: message {} has not been taken in",
    ChildState.SKIPPED: "skipped: its saga was forgotten before it began (message {})",
    ChildState.LEFT_BEHIND: "left behind: it had not started in time, and is not waited for (message {})",
    ChildState.CANCELLED: "cancelled before it began (message {})",
    ChildState.ROLLED_BACK: "failed before it began: late, or its saga was forgotten (message {})",
}
_ELSEWHERE = {
    ChildState.WAITING: "not started, as far as is known",
    ChildState.CANCELLING: "cancelled, not confirmed yet",
    ChildState.CANCELLED: "cancelled before it began",
}


@dataclass(frozen=True, slots=True)
class _Execution:
    run: RunStatus
    step: StepStatus


_Node: TypeAlias = RunStatus | Unstarted | ChildElsewhere | _Execution
_Place: TypeAlias = tuple[uuid.UUID | None, int | None]


def lines_of(found: Hierarchy) -> Iterator[str]:
    """Yield a hierarchy line by line. It may have thousands of levels: nothing here is recursive."""
    yield _message(found)
    below = _placed(found)
    ahead: list[tuple[int, _Node]] = [(0, node) for node in reversed(below[None, None])]
    while ahead:
        level, node = ahead.pop()
        for line in _lines(node, found):
            yield _INDENT * level + line
        ahead += [(level + 1, one) for one in reversed(_below(node, below))]


def _placed(found: Hierarchy) -> dict[_Place, list[_Node]]:
    """Return who stands below each execution of each run; late runs stand below their run, behind its executions."""
    below: dict[_Place, list[_Node]] = defaultdict(list)
    known = {run.id for run in found.runs}
    nodes: list[RunStatus | Unstarted | ChildElsewhere] = [*found.runs, *found.unstarted, *found.elsewhere]
    for one in nodes:
        place = (one.parent, one.launched_by) if one.parent in known else (None, None)
        below[place].append(one)
    return below


def _below(node: _Node, below: dict[_Place, list[_Node]]) -> Sequence[_Node]:
    match node:
        case RunStatus():
            return [*(_Execution(node, step) for step in node.steps), *below[node.id, None]]
        case _Execution(run, step):
            return below[run.id, step.seq]
        case _:
            return ()


def _lines(node: _Node, found: Hierarchy) -> Iterator[str]:
    match node:
        case RunStatus():
            yield from _run(node, found)
        case _Execution(_, step):
            yield _execution(step)
        case Unstarted():
            yield f"{_whose(node)}: {_UNSTARTED[node.state].format(node.message_id)}"
        case ChildElsewhere():
            yield from _elsewhere(node, found)


def _message(found: Hierarchy) -> str:
    told = [f"topic {in_one_line(found.topic)}"] if found.topic is not None else []
    told += [f"key {in_one_line(found.key)}"] if found.key is not None else []
    if found.taken_in_at is not None:
        told.append(f"taken in {time_text(found.taken_in_at)}")
    elif found.pruned_at is not None:
        told.append(f"pruned {time_text(found.pruned_at)}")
    elif not found.dead_letters and not found.elsewhere:
        told.append("not taken in yet")
    told += [f"dead letter {number}" for number in found.dead_letters]
    return f"message {found.message_id}: {', '.join(told)}"


def _run(run: RunStatus, found: Hierarchy) -> Iterator[str]:
    lasted = f"{seconds_text((run.ended_at or found.at) - run.created_at)}{'' if run.ended_at else ' so far'}"
    note = ", late: nobody waits for it" if run.late else ""
    note += "" if run.parent_home is None else f", for home {in_one_line(run.parent_home)}"
    state = f"{run.state}, abandoned" if run.abandoned else run.state
    yield f"{_whose(run)}: {state}, began {time_text(run.created_at)}, {lasted}, run {run.id}{note}"
    for one in found.executing:
        if one.run_id == run.id:
            since = "" if one.since is None else f" since {time_text(one.since)}, {seconds_text(found.at - one.since)}"
            yield f"{_INDENT}being executed{since}"
    if run.sleeps_until is not None:
        left = seconds_text(run.sleeps_until - found.at)
        yield f"{_INDENT}sleeps until {time_text(run.sleeps_until)}, {left} more"
    if run.failure is not None:
        yield f"{_INDENT}failure: {failure_line(run.failure)}"
    if run.rollback_reason is not None and run.rollback_reason != run.failure:
        yield f"{_INDENT}rolled back for: {failure_line(run.rollback_reason)}"
    if run.reason is not None:
        yield f"{_INDENT}reason: {in_one_line(run.reason)}"
    if run.giving_up is not None:
        yield f"{_INDENT}gives up for: {failure_line(run.giving_up)}"
    for action in run.actions:
        yield f"{_INDENT}{_action(action)}"
    if run.interruptions:
        yield f"{_INDENT}interrupted {run.interruptions} times in a row: {in_one_line(run.interruption or '')}"


def _elsewhere(child: ChildElsewhere, found: Hierarchy) -> Iterator[str]:
    state = _ELSEWHERE.get(child.state, child.state.value)
    if child.reported_at is not None:
        heard = f"heard {time_text(child.reported_at)}, {seconds_text(found.at - child.reported_at)} ago"
    elif child.launched_at is not None:
        heard = f"launched {time_text(child.launched_at)}, {seconds_text(found.at - child.launched_at)} ago"
    else:
        heard = "nothing heard of it"
    what = f"message {child.message_id}" if child.run_id is None else f"run {child.run_id}"
    yield f"{_whose(child)}: in home {in_one_line(child.home)}: {state}, {heard}, {what}"
    if child.failure is not None:
        yield f"{_INDENT}failure: {failure_line(child.failure)}"


def _action(action: ActionStatus) -> str:
    what = action.kind if action.seq is None else f"{action.kind} of {action.seq}"
    note = "" if action.note is None else f": {in_one_line(action.note)}"
    return f"{what}, {time_text(action.at)}, by {in_one_line(action.source or '-')}{note}"


def _execution(step: StepStatus) -> str:
    what = in_one_line(step.step) + (f"[{step.iteration}]" if step.iteration else "")
    if step.kind is StepKind.COMPENSATION:
        what += f", compensation of {step.undoes}"
    elif step.kind is StepKind.FINALISER:
        what += f", finaliser of {step.undoes}"
    elif step.kind is StepKind.CHILD_FAILURE_HANDLER:
        what += ", failure handler"
    attempt = f", attempt {step.attempt}" if step.attempt else ""
    failure = "" if step.failure is None else f": {failure_line(step.failure)}"
    return f"{step.seq} {what}: {step.state}, {seconds_text(step.ended_at - step.started_at)}{attempt}{failure}"


def _whose(one: RunStatus | Unstarted | ChildElsewhere) -> str:
    return f"{in_one_line(one.saga)} ({in_one_line(one.service)})"
