"""Writes `docs/state-machine.md` from the tables of the code: `python -m scoop_outbox.core.diagram > FILE`."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import TypeVar, get_args

from scoop_outbox.core.decision import (
    AskChildren,
    CancelChildren,
    CancelSiblings,
    Commit,
    Compensate,
    CompensationFailed,
    Complete,
    Decision,
    EndRollbackFailed,
    EndRolledBack,
    ExpireChildren,
    Finalise,
    Finalised,
    HandleChildFailure,
    HandleChildRollbackFailure,
    Handled,
    Invoke,
    LeaveBehind,
    Park,
    PassOver,
    RollBack,
    Undone,
    Wait,
)
from scoop_outbox.core.run import CHILD_TRANSITIONS, RUN_TRANSITIONS, ChildState, RunState

_RUN_ENDS = (RunState.COMMITTED, RunState.ROLLED_BACK, RunState.ROLLBACK_FAILED)
_CHILD_ENDS = (
    *(ChildState.COMMITTED, ChildState.ROLLED_BACK, ChildState.ROLLBACK_FAILED),
    *(ChildState.SKIPPED, ChildState.CANCELLED, ChildState.LEFT_BEHIND),
)

State = TypeVar("State", bound=StrEnum)

RULES: tuple[tuple[str, str, type[Decision]], ...] = (
    ("running", "somebody outside says that an external participant has failed", RollBack),
    ("running", "somebody outside has completed an external participant", Complete),
    ("running", "it gives up, and open children do not know", CancelChildren),
    ("running", "it gives up, and no child is open", RollBack),
    ("any", "a child has not started by its deadline", ExpireChildren),
    ("running", "a child failed, its step fails fast, and open children do not know", CancelSiblings),
    ("any", "its strategy does not wait for open children that have not started", LeaveBehind),
    ("any", "a child is open", Wait),
    ("rolling_back", "its strategy gives the rollback up", EndRollbackFailed),
    ("rolling_back", "the rollback has taken longer than it may, and something is left", EndRollbackFailed),
    ("any", "it sleeps, or a retry is not due yet, and no children failed", Wait),
    ("running", "children failed, and their step is not in the code any more", Park),
    ("running", "children failed, and their step has no handler for that", RollBack),
    ("running", "children failed", HandleChildFailure),
    ("any", "children of a finaliser failed, on the way forward", RollBack),
    ("any", "children of a finaliser failed, while rolling back", EndRollbackFailed),
    ("any", "a finaliser was called, and its children have finished", Finalised),
    ("any", "a finaliser is to be called, and its step is not in the code any more", Park),
    ("any", "a finaliser is to be called, and is not in the code any more", Finalised),
    ("any", "an execution was left, and its finaliser was not called", Finalise),
    ("running", "it is an external participant", Wait),
    ("running", "there is no next step", Commit),
    ("running", "the next step is not in the code any more", Park),
    ("running", "it has executed nothing, and its strategy does not begin yet", Wait),
    ("running", "otherwise", Invoke),
    ("rolling_back", "nothing is left to be undone", EndRolledBack),
    ("rolling_back", "nothing is left but what was passed over", EndRollbackFailed),
    ("rolling_back", "the newest instance cannot be undone, and its saga rolls back all the same", PassOver),
    ("rolling_back", "a handler of rollback failures has run, and its children have finished", Handled),
    ("rolling_back", "children of such a handler failed, and its step is not in the code any more", Park),
    ("rolling_back", "children of such a handler failed, and it has gone or was called ten times", EndRollbackFailed),
    ("rolling_back", "children of such a handler failed", HandleChildRollbackFailure),
    ("rolling_back", "children of a compensation failed, and its step is not in the code any more", Park),
    ("rolling_back", "children of a compensation failed", CompensationFailed),
    ("rolling_back", "a compensation has run, and its children have finished", Undone),
    ("rolling_back", "the newest instance's step is not in the code any more", Park),
    ("rolling_back", "children of the newest instance are committed, and none before could not roll back", AskChildren),
    ("rolling_back", "children could not be rolled back: the very reason for this rollback", EndRollbackFailed),
    ("rolling_back", "children could not be rolled back, and the step has no handler for that", EndRollbackFailed),
    ("rolling_back", "children could not be rolled back", HandleChildRollbackFailure),
    ("rolling_back", "the newest instance is an execution of a step that has a compensation", Compensate),
    ("rolling_back", "otherwise", Undone),
    ("ended", "whatever else", Wait),
)
"""What `decide` asks, in its order: the state, the question, and the decision if the answer is yes."""


def document() -> str:
    """Return the text of `docs/state-machine.md`."""
    lines = [
        "# The state machine",
        "",
        "This file is written by `python -m scoop_outbox.core.diagram` from the tables of the code; a test compares",
        "the two. Change the code, then write it again.",
        "",
        "## A run",
        "",
        *_diagram(RUN_TRANSITIONS, RunState.RUNNING, _RUN_ENDS),
        "",
        "## A child, as its parent knows it",
        "",
        "While a child is `waiting`, `started`, `cancelling` or `rolling_back`, its parent waits.",
        "",
        *_diagram(CHILD_TRANSITIONS, ChildState.WAITING, _CHILD_ENDS),
        "",
        "## Decisions",
        "",
        "A claimed run does one thing, in one transaction. `decide` asks these questions from top to bottom, and the",
        "first one that is answered with yes decides.",
        "",
        "| state | question | decision |",
        "| --- | --- | --- |",
        *(f"| {state} | {question} | {decision.__name__} |" for state, question, decision in RULES),
        "",
        "| decision | what is done |",
        "| --- | --- |",
        *(f"| {decision.__name__} | {_summary(decision)} |" for decision in get_args(Decision)),
    ]
    return "\n".join(lines) + "\n"


def _diagram(transitions: Mapping[tuple[State, State], str], first: State, ends: Collection[State]) -> Iterable[str]:
    yield from ("```mermaid", "stateDiagram-v2", f"    [*] --> {first}")
    for (before, after), why in transitions.items():
        yield f"    {before} --> {after}: {why}"
    yield from (f"    {state} --> [*]" for state in ends)
    yield "```"


def _summary(decision: type) -> str:
    return (decision.__doc__ or "").splitlines()[0].rstrip(".")


if __name__ == "__main__":
    sys.stdout.write(document())
