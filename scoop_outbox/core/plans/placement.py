"""The plan of placing a run: whether this worker executes it, leaves it to workers of another version, or parks it."""

from __future__ import annotations

from datetime import datetime

from scoop_outbox.core.decision import Decision, HandleChildFailure, Invoke, Park, needed
from scoop_outbox.core.plans.claim import Claim, Executor
from scoop_outbox.core.run import Run, RunState, changed
from scoop_outbox.core.statement import COMMIT, ROLLBACK, Plan, ask, statement
from scoop_outbox.core.versions import GRACE, Version, executing_version, left_out


def place_run(claimed: Claim, due: Decision, executor: Executor) -> Plan[Decision | None]:
    """Return what is to be done here with a run of another version, or whose step is not known here.

    The run belongs to our version from then on. None: it is left to others, and the transaction has ended.
    """
    run, deployment, needs = claimed.run, executor.deployment, needed(due)
    undoing = claimed.facts.instance
    if needs is None and undoing is not None and claimed.saga.get(undoing.step) is not None:
        needs = undoing.step  # how it is undone is for those who know it, even if nothing is called
    mine = deployment.mine.get(run.saga)
    if mine is None:
        return due  # this process does not say what it knows
    by = executing_version(run.saga, run.version, needs, deployment)
    if by is None:
        known, _, _ = yield from _last_known(run, needs)
        since = max((at for at in (known, deployment.since) if at is not None), default=None)
        if since is None or claimed.facts.now - since >= GRACE:
            return due
        yield from ask(ROLLBACK)
        return None
    if by.id != mine.id:
        # Or we would find it again and again, and they would not: mail of our version is ours.
        yield from ask(statement("address_mail", ids=claimed.mail, version=by.id), COMMIT)
        executor.hints.mail(run.service, run.saga, by.id, run.id, 0.0)
        return None
    return (yield from _take_over(claimed, due, mine))


def _take_over(claimed: Claim, due: Decision, mine: Version) -> Plan[Decision]:
    """Make a run one of our version, unless it would silently leave out a step (behaviour Q79)."""
    run = claimed.run
    if run.state is RunState.RUNNING and not isinstance(due, Invoke | HandleChildFailure):
        return due  # which step comes next is not decided here
    # What a handler of failures is followed by was decided when its step returned, by the version before.
    comes = due.step.name if isinstance(due, Invoke) else run.next_step
    if run.version not in ("", mine.id) and run.state is RunState.RUNNING and comes is not None:
        _, before, executed = yield from _last_known(run, comes)
        if skipped := left_out(before or (), mine.steps, comes, executed):
            return Park(
                f"the version of saga {run.saga!r} that living workers have executes {', '.join(map(repr, skipped))} "
                f"before {comes!r}, and this run would leave that out: start a worker of the version in which "
                "it began, and it goes on by itself, or retry it to go on all the same",
                comes,
            )
    claimed.run = changed(run, version=mine.id)
    return due


def _last_known(run: Run, needs: str | None) -> Plan[tuple[datetime | None, list[str] | None, list[str]]]:
    """Read when a step was last known to somebody, the steps of the run's version, and those that it has executed."""
    (rows,) = yield from ask(
        statement("read_last_known", service=run.service, saga=run.saga, needs=needs, version=run.version, run=run.id)
    )
    known, steps, executed = rows[0]
    return known, steps, executed
