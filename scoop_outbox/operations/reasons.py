"""Reasons why runs and messages do not go on, from what was read about them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime

from scoop_outbox._deadlines import earlier
from scoop_outbox._failure.root_cause import in_a_line, root_causes
from scoop_outbox.core import decision
from scoop_outbox.core.decision import Decision, needed
from scoop_outbox.core.plans.explain import UNKNOWN_STEP, Situation, Workers
from scoop_outbox.core.plans.progress import Missing, OpenElsewhere
from scoop_outbox.core.run import Instance, Run, RunState
from scoop_outbox.core.statement import Rows
from scoop_outbox.failure import Failure, GaveUp
from scoop_outbox.operations.explanation import Cause, Reason
from scoop_outbox.progress import dead_letter_text, home_text, interruption_text, silence_text
from scoop_outbox.store.blockers import Blocker


def of_run(one: Situation, *, children: bool) -> Iterator[Reason]:
    """Yield why a run does not go on.

    Args:
        one: what was read about it.
        children: whether it waits for children: then only what else there is counts, now.
    """
    if one.run.state.ended:
        yield from of_ended(one)
        return
    asked = one.run.giving_up or one.cancellation
    if asked is not None:
        yield Reason(
            Cause.CANCELLED, f"it has been asked to give up, and what is shielded ends first: {_failure(asked)}"
        )
    if one.locked_by is not None:
        yield _locked(one.run, Blocker(*one.locked_by))
    yield from _deadlines(one)
    if one.external and one.run.state is RunState.RUNNING and isinstance(one.due, decision.Wait):
        command = shlex.join(["scoop-outbox", "complete", str(one.run.message_id), one.run.saga])
        yield Reason(Cause.OUTSIDE, f"it waits for somebody to complete it: {command}")
        return
    if children:
        return
    unserved = list(_no_worker(one))
    yield from unserved
    if one.queued and one.first is not None:
        text = (
            f"it waits for its turn: run {one.first} comes first in its lane, and {one.before} were taken in before it"
        )
        yield Reason(Cause.LANE, text, run_id=one.first)
    else:
        yield from (reason for reason in _when(one) if not (unserved and reason.cause is Cause.DUE))


def _deadlines(one: Situation) -> Iterator[Reason]:
    """Yield until when a run waits at most. Of its saga's timeout the code alone knows before a step is executed."""
    run = one.run
    deadline = earlier(run.deadlines.happy_path, run.own_deadline)
    if run.state is RunState.ROLLING_BACK and run.rollback_by is not None:
        text = f"its rollback has to end {_when_due(run.rollback_by, one.now)}, or has failed"
        yield Reason(Cause.DEADLINE, text, at=run.rollback_by)
    elif run.state is RunState.RUNNING and deadline is not None:
        text = f"it has to commit {_when_due(deadline.at, one.now)}, or gives up: a deadline of {deadline.source}"
        yield Reason(Cause.DEADLINE, text, at=deadline.at)


def of_ended(one: Situation) -> Iterator[Reason]:
    """Yield why nothing goes on by itself with a run that is parked or has ended."""
    run = one.run
    if run.state is RunState.PARKED:
        yield Reason(Cause.PARKED, f"it is parked: {run.reason}{_unparked_by(one)}", at=one.ended_at)
    elif run.state is RunState.ROLLBACK_FAILED:
        obstacle = "" if run.obstacle is None else f": {_failure(run.obstacle)}"
        why = "" if run.failure is None else f"; it was to be rolled back for: {_failure(run.failure)}"
        then = "it was abandoned" if one.abandoned else f"scoop-outbox retry {run.id}, skip or abandon it"
        text = f"it could not be rolled back{obstacle}{why}; {then}"
        yield Reason(Cause.ROLLBACK_FAILED, text, at=one.ended_at)
    else:
        why = "" if run.failure is None else f", for: {_failure(run.failure)}"
        when = "" if one.ended_at is None else f" at {_time(one.ended_at)}"
        yield Reason(Cause.ENDED, f"it has ended{when}{why}", at=one.ended_at)


def of_message(missing: Missing, places: Rows, workers: Workers) -> Iterator[Reason]:
    """Yield why a message has not been taken in.

    Args:
        missing: for whom it is waited for.
        places: where messages are, as `read_whereabouts` answers.
        workers: those of the service.
    """
    mine = [place for place in places if place[0] == missing.message_id]
    for _, where, topic, _, at, number, service, why in mine:
        if where == "outbox":
            relayed = "a relay is alive" if missing.relayed else "no relay is alive"
            yield Reason(Cause.OUTBOX, f"it is in the outbox, on topic {topic!r}, since {_time(at)}; {relayed}", at=at)
        elif where == "dead letter" and service in (None, missing.service):
            yield Reason(Cause.DEAD_LETTER, f"{dead_letter_text(number)}: {why}", at=at, dead_letter=number)
    if any(where == "outbox" or (where == "dead letter" and who is None) for _, where, *_, who, _ in mine):
        return
    if missing.dead_letter is None:
        whose = "whoever handles it" if missing.service is None else f"service {missing.service!r}"
        text = f"it has left the outbox: {whose} takes it in from the broker"
        yield Reason(Cause.INTAKE, text)
    if missing.service is not None and not workers.alive:
        yield Reason(Cause.NO_WORKER, f"no worker of service {missing.service!r} is alive")


def of_elsewhere(one: OpenElsewhere, places: Rows) -> Iterator[Reason]:
    """Yield why a child in another home has not ended, as far as this home knows.

    Args:
        one: the child.
        places: where messages are, as `read_whereabouts` answers, of a child of which nothing has been heard.
    """
    for message_id, where, topic, _, at, number, service, why in places:
        if message_id == one.message_id and where == "outbox":
            yield Reason(Cause.OUTBOX, f"its message is in the outbox, on topic {topic!r}, since {_time(at)}", at=at)
        elif message_id == one.message_id and where == "dead letter" and service is None:
            text = f"its message was not published: {dead_letter_text(number)}: {why}"
            yield Reason(Cause.DEAD_LETTER, text, at=at, dead_letter=number)
    silence = silence_text(one)
    if silence is not None:
        yield Reason(Cause.HOME_UNKNOWN if one.name is None else Cause.HOME_SILENT, silence)
    command = shlex.join(["scoop-outbox", "explain", str(one.run_id or one.message_id)])
    yield Reason(Cause.HOME, f"{home_text(one)} knows what keeps it: {command}, with the database of that home")


def next_text(due: Decision) -> str | None:
    """Return what a run does next, as far as can be told without its code; None when it waits."""
    match due:
        case decision.Invoke(step, iteration):
            what = "its first step" if step.name == UNKNOWN_STEP else f"step {step.name!r}"
            return f"{what} is executed" + (f", iteration {iteration}" if iteration else "")
        case decision.Commit() | decision.Complete():
            return "it commits"
        case decision.RollBack(failure):
            gives_up = failure.type == GaveUp.__name__
            does = (
                "it gives up, and rolls back"
                if gives_up
                else "the failure of its children is handled, or it rolls back"
            )
            return f"{does}: {_failure(failure)}"
        case decision.Park(_, needs):
            return f"it needs step {needs!r}"
        case decision.CancelChildren(reason) | decision.CancelSiblings(reason):
            return f"its children are told to give up: {_failure(reason)}"
    return _ending_text(due)


def _ending_text(due: Decision) -> str | None:
    match due:
        case decision.AskChildren(instance):
            return f"the children of {_execution(instance)} are ordered to roll back"
        case decision.Compensate(instance=instance) | decision.Undone(instance):
            return f"{_execution(instance)} is undone"
        case decision.ExpireChildren():
            return "children that have not started by their deadline have failed"
        case decision.EndRolledBack():
            return "it is rolled back: nothing is left to be undone"
        case decision.EndRollbackFailed(failure) | decision.CompensationFailed(failure=failure):
            return f"its code handles what could not be undone, or its rollback has failed: {_failure(failure)}"
    return _rare_text(due)


def _rare_text(due: Decision) -> str | None:
    match due:
        case decision.PassOver(instance, failure):
            return f"{_execution(instance)} cannot be undone, and is passed over: {_failure(failure)}"
        case decision.LeaveBehind():
            return "its strategy does not wait any longer for children that have not started"
        case decision.Finalise(body=body):
            return f"the finaliser of step {body.step!r}, execution {body.seq}, is called"
        case decision.Finalised():
            return "what its finaliser launched has finished: it goes on"
    return None


def _locked(run: Run, process: Blocker) -> Reason:
    since = process.since
    if process.application == f"scoop_outbox {run.service}"[:63]:
        return Reason(Cause.EXECUTING, f"it is being executed, by {process}", at=since, process=process)
    return Reason(Cause.ROW_LOCK, f"its row is locked by {process}", at=since, process=process)


def _no_worker(one: Situation) -> Iterator[Reason]:
    run, workers, needs = one.run, one.workers, None if one.due is None else needed(one.due)
    if not workers.alive:
        yield Reason(Cause.NO_WORKER, f"no worker of service {run.service!r} is alive")
    elif run.saga not in workers.steps:
        yield Reason(Cause.NO_WORKER, f"no living worker of service {run.service!r} has saga {run.saga!r}")
    elif needs is not None and not workers.know(run.saga, needs):
        text = f"no living worker of service {run.service!r} knows step {needs!r} of saga {run.saga!r}"
        yield Reason(Cause.NO_WORKER, text)


def _when(one: Situation) -> Iterator[Reason]:
    """Yield when a run is looked at."""
    run, mail, now = one.run, one.mail_due, one.now
    if run.not_before is not None and run.not_before > now and run.attempt == 0:
        text = f"it sleeps behind step {run.step!r}, and wakes {_when_due(run.not_before, now)}"
        yield Reason(Cause.SLEEP, text, at=run.not_before)
    elif run.not_before is not None and run.not_before > now:
        text = f"attempts that failed: {run.attempt}; the next one is made {_when_due(run.not_before, now)}"
        yield Reason(Cause.RETRY, text, at=run.not_before)
    elif one.interruptions:
        again = "" if mail is None else f"; it is executed again {_when_due(mail, now)}"
        text = interruption_text(one.interruptions, one.interruption)
        yield Reason(Cause.INTERRUPTED, text + again, at=mail)
    elif one.locked_by is not None:
        return
    elif mail is None:
        yield Reason(Cause.NO_MAIL, "no wake-up is posted for it: no worker looks at it")
    elif mail > now:
        yield Reason(Cause.DUE, f"a worker looks at it {_when_due(mail, now)}", at=mail)
    else:
        text = f"it has been due for {(now - mail).total_seconds():.1f} s: it waits for a worker with a free slot"
        yield Reason(Cause.DUE, text, at=mail)


def _unparked_by(one: Situation) -> str:
    needs = one.run.needs
    if needs is None:
        return ""
    known = "a living worker knows it" if one.workers.know(one.run.saga, needs) else "no living worker knows it"
    return f" (it needs step {needs!r}: {known})"


def _execution(instance: Instance) -> str:
    return f"step {instance.step!r}, execution {instance.seq},"


def _failure(failure: Failure) -> str:
    root = root_causes(failure)[0]
    told = in_a_line(failure)
    return told if root == failure else f"{told}, root cause {in_a_line(root)}"


def _when_due(at: datetime, now: datetime) -> str:
    ahead = (at - now).total_seconds()
    return f"in {ahead:.1f} s, at {_time(at)}" if ahead > 0 else "at once"


def _time(at: datetime) -> str:
    return at.isoformat(timespec="seconds")
