"""A hierarchy as a tree: runs, their steps, and the runs that each step launched."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import timedelta

from rich.text import Text
from rich.tree import Tree

from scoop_outbox import Failure, RunState, RunStatus, Status, StepKind, StepStatus

_COLOURS = {RunState.COMMITTED: "green", RunState.ROLLED_BACK: "red", RunState.ROLLBACK_FAILED: "bold red"}


def tree_of(status: Status, width: int) -> Tree:
    """Draw a hierarchy.

    Each step has the number of its turn in the whole hierarchy, whichever service executed it, the time at which it
    ended and how long it took.
    """
    return _Drawing(status, width).tree()


class _Drawing:
    def __init__(self, status: Status, width: int) -> None:
        executions = [(run.id, step) for run in status.runs for step in run.steps]
        # All databases are on one server here, and share a clock; a step ends before what it launched begins.
        executions.sort(key=lambda execution: execution[1].ended_at)
        self._turns: Mapping[tuple[uuid.UUID, int], int] = {
            (run_id, step.seq): turn for turn, (run_id, step) in enumerate(executions, 1)
        }
        self._runs = status.runs
        self._began = min(run.created_at for run in status.runs)
        self._width = width

    def tree(self) -> Tree:
        root = next(run for run in self._runs if run.parent is None)
        tree = Tree(_run_line(root), guide_style="dim")
        self._add_steps(tree, root, 1)
        return tree

    def _add_steps(self, tree: Tree, run: RunStatus, depth: int) -> None:
        for step in run.steps:
            branch = tree.add(self._step_line(run, step, depth))
            for child in self._launched_by(run, step):
                self._add_steps(branch.add(_run_line(child)), child, depth + 2)

    def _launched_by(self, run: RunStatus, step: StepStatus) -> Iterator[RunStatus]:
        return (child for child in self._runs if child.parent == run.id and child.launched_by == step.seq)

    def _step_line(self, run: RunStatus, step: StepStatus, depth: int) -> Text:
        line = Text(no_wrap=True)
        line.append(f"{self._turns[run.id, step.seq]:>2} ", style="bold")
        match step:
            case StepStatus(state="failed", failure=Failure() as failure):
                line.append(f"{step.step} raised {_short(failure)}", style="red")
            case StepStatus(kind=StepKind.COMPENSATION):
                line.append(f"undo {step.step}", style="yellow")
            case StepStatus(kind=StepKind.CHILD_FAILURE_HANDLER):
                line.append(f"{step.step} handled the failure of what it launched", style="yellow")
            case StepStatus(kind=StepKind.FINALISER):
                line.append(f"{step.step} cleaned up", style="yellow")
            case _:
                line.append(step.step)
                undone = any(other.undoes == step.seq and other.kind is not StepKind.FINALISER for other in run.steps)
                if step.state == "compensated" and not undone:
                    line.append(" (nothing of its own to undo)", style="dim")
        times = f"{_milliseconds(step.ended_at - self._began):>5.0f} ms  {_took(step):>7}"
        line.pad_right(max(self._width - 4 * depth - len(line) - len(times), 2))
        return line.append(times, style="dim")


def _run_line(run: RunStatus) -> Text:
    line = Text(f"{run.saga} ", style="bold cyan", no_wrap=True)
    line.append(f"in {run.service}: ", style="not bold dim")
    return line.append(run.state.value.replace("_", " "), style=f"not bold {_COLOURS.get(run.state, 'yellow')}")


def _short(failure: Failure) -> str:
    return failure.type.rpartition(".")[2]


def _took(step: StepStatus) -> str:
    return f"{_milliseconds(step.ended_at - step.started_at):.1f} ms"


def _milliseconds(duration: timedelta) -> float:
    return duration / timedelta(milliseconds=1)
