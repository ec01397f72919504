"""Settling: a transition becomes statements, and the transaction ends with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from scoop_outbox._deadlines import Deadline
from scoop_outbox.core.deadline import kept_deadline
from scoop_outbox.core.plans.claim import Claim, Executor, claim, claimed_again, reclaim_statements, timer_of
from scoop_outbox.core.plans.failures import Known, Writing, id_of
from scoop_outbox.core.plans.launch import launch_params
from scoop_outbox.core.plans.news import news, pass_on
from scoop_outbox.core.plans.strategy import expected
from scoop_outbox.core.run import Run, RunState, StepKind, changed
from scoop_outbox.core.statement import (
    COMMIT,
    COMMIT_AND_BEGIN,
    RELEASE_SAVEPOINT,
    Plan,
    Rows,
    Statement,
    ask,
    statement,
)
from scoop_outbox.core.transition import Mail, Record, Transition
from scoop_outbox.failure import Failure


def settle(
    claimed: Claim, change: Transition, executor: Executor, *, go_on: bool, called: bool = False
) -> Plan[Claim | None]:
    """Write a transition and commit it; if the run goes straight on, claim it again in the same round trip.

    When a callback was `called` behind the claim's savepoint and has returned, the savepoint must still be there.
    """
    change, writing = _named(change, executor.failures)
    after = change.run
    writes = [RELEASE_SAVEPOINT] if called else []
    writes += writing.statements() if writing is not None else ()
    writes += _writes_run(claimed, change, executor)
    writes += _writes_mail(claimed, change, go_on=go_on)
    ahead = go_on and change.mail is Mail.KEEP
    # Behind a finaliser, the step's results are still to be seen.
    children = change.consumes is not None or (claimed.run.body_seq is not None and after.state is RunState.RUNNING)
    again = reclaim_statements(after, children=children) if ahead else []
    answers = yield from ask(*writes, COMMIT_AND_BEGIN if ahead else COMMIT, *again)
    rows = {write.name: answer for write, answer in zip(writes, answers, strict=False)}
    if writing is not None:
        writing.written()
    _hint(claimed, change, rows, executor)
    if ahead:
        if after.interrupted or (after.inherited is not None and after != claimed.run):
            after = changed(after, inherited=None, interrupted=False)  # it has been written with the run
        return (yield from claimed_again(claimed, after, answers[len(writes) + 1 :], executor))
    if go_on and change.mail is Mail.LOOK:
        return (yield from claim(after.id, executor))
    if go_on and change.mail is Mail.DROP_IF_WAITING and not rows["drop_mail_if_waiting"][0][0]:
        return (yield from claim(after.id, executor))  # nobody listens to what was launched: nothing to wait for
    return None


def _hint(claimed: Claim, change: Transition, rows: Mapping[str, Rows], executor: Executor) -> None:
    """Tell who may have something to do now, and what operators should hear of."""
    after = change.run
    if _tells_elsewhere(claimed) and (change.asks or change.cancels or change.expires):
        executor.hints.outbox()
    if change.emissions:
        executor.hints.outbox()
        launched = rows.get("launch") or rows.get("launch_across") or ()
        unhandled = [change.emissions[place - 1] for (place,) in launched]
        if topics := [one.topic for one in unhandled if not one.expects]:
            executor.reports.unhandled(topics)
    if change.wake_at is not None:
        wait = change.wake_at - claimed.facts.now
        executor.hints.mail(after.service, after.saga, after.version, after.id, wait.total_seconds())
    if change.cancels is not None:
        executor.reports.cancels_children(after, change.cancels, claimed.message)
    if change.expires is not None:
        executor.reports.expires_children(after, change.expires, claimed.message)
    left = [(service, saga) for *_, service, saga in rows.get("leave_behind", ()) if saga is not None]
    if left:
        executor.reports.leaves_behind(after, left, claimed.message)
    if after.undo_seq != claimed.run.undo_seq and after.unresolved != claimed.run.unresolved:
        executor.reports.passes_over(after, _step_of(claimed, change), claimed.message)
    if after.state is not claimed.run.state:
        executor.reports.changed(after, _step_of(claimed, change), claimed.message)
    pass_on(after, rows, executor.hints)


def _step_of(claimed: Claim, change: Transition) -> str | None:
    """Return the step at which a run's state has changed: the one executed, needed or undone, or that has launched."""
    run, instance, body = change.run, claimed.facts.instance, claimed.facts.body
    if change.record is not None:
        return change.record.step
    if body is not None:
        return body.step
    return run.needs or (run.step if instance is None else instance.step)


def _named(change: Transition, known: Known) -> tuple[Transition, Writing | None]:
    """Return a transition whose failures have ids, and those of them that are to be written down first."""
    run, record, asks = change.run, change.record, change.asks
    told = (run.failure, run.unresolved, change.cancels, change.expires, None if record is None else record.failure)
    if all(one is None for one in told):
        return change, None
    writing = Writing(known)
    failure, obstacle = writing.name_any(run.failure), writing.name_any(run.obstacle)
    reason, unresolved = writing.name_any(run.giving_up), writing.name_any(run.unresolved)
    named = (failure, obstacle, reason, unresolved)
    if any(one is not other for one, other in zip(named, _failures(run), strict=True)):
        run = changed(run, failure=failure, obstacle=obstacle, giving_up=reason, unresolved=unresolved)
    if record is not None and record.failure is not None:
        record = replace(record, failure=writing.name(record.failure))
    asks = None if asks is None else (asks[0], writing.name(asks[1]))
    cancels = writing.name_any(change.cancels)
    expires = writing.name_any(change.expires)
    return replace(change, run=run, record=record, asks=asks, cancels=cancels, expires=expires), writing


def _failures(run: Run) -> tuple[Failure | None, ...]:
    return run.failure, run.obstacle, run.giving_up, run.unresolved


def _writes_run(claimed: Claim, change: Transition, executor: Executor) -> Iterator[Statement]:
    """Write what happened, and tell those whom it concerns."""
    before, after, record = claimed.run, change.run, change.record
    if _advances(change):
        yield statement("advance_run", **_advance(change, claimed, executor))
    else:
        if record is not None:
            yield statement("record_step", **_record(record, claimed, executor))
        if after != before or before.interrupted:
            yield statement("update_run", **_columns(claimed, after), **_yielding(change, claimed))
    yield from _marks(change)
    if change.emissions:
        seq = after.seq if record is None else record.seq
        params = launch_params(change.emissions, after, seq, via_broker=executor.via_broker)
        yield statement("launch_across", **params) if executor.across() else statement("launch", **params)
        yield from expected(change.emissions, after, seq)
    yield from news(change, elsewhere=_tells_elsewhere(claimed))


def _tells_elsewhere(claimed: Claim) -> bool:
    """Tell whether some of the children that a run may have to tell something live in other homes."""
    instance = claimed.facts.instance
    return claimed.facts.elsewhere or (instance is not None and instance.elsewhere)


def _marks(change: Transition) -> Iterator[Statement]:
    """Write what becomes of an instance and its children."""
    if change.undone is not None:
        yield statement("mark_undone", run=change.run.id, seq=change.undone)
    if change.consumes is not None:
        yield statement("consume_failures", run=change.run.id, seq=change.consumes)
    if change.delivers is not None:
        yield statement("deliver_failures", run=change.run.id, seq=change.delivers)


def _writes_mail(claimed: Claim, change: Transition, *, go_on: bool) -> Iterator[Statement]:
    """Drop the mail that was read, or keep it for whoever takes the run on."""
    run = change.run
    if change.mail is Mail.DROP_IF_WAITING:
        yield statement("drop_mail_if_waiting", ids=claimed.mail, run=run.id)
    elif change.mail is Mail.DROP:
        yield statement("drop_mail", ids=claimed.mail)
    elif not go_on:
        yield statement("defer_mail", ids=claimed.mail)
    if change.wake_at is not None:
        yield timer_of(run, change.wake_at)


def _advances(change: Transition) -> bool:
    """Tell whether a step was executed without failing, and is no sleep: one statement writes that, the commonest."""
    record = change.record
    if change.run.not_before is not None:
        return False
    return record is not None and record.kind is StepKind.STEP and record.failure is None


def _advance(change: Transition, claimed: Claim, executor: Executor) -> dict[str, Any]:
    after = change.run
    return {
        "run": after.id,
        "seq": after.seq,
        "step": after.step,
        "next_step": after.next_step,
        "iteration": after.iteration,
        "attempt": claimed.run.attempt,
        "state": after.state.value,
        "context": after.context,
        "result": after.result,
        "ended": after.state.ended,
        "started_at": claimed.facts.now,
        "worker": executor.id,
        "version": after.version,
        "own_deadline": _stored(kept_deadline(claimed.saga, after)),
        "body_seq": after.body_seq,
        **_yielding(change, claimed),
    }


def _yielding(change: Transition, claimed: Claim) -> dict[str, Any]:
    """Return what says whether the run is to give up instead."""
    deadline = claimed.facts.deadline if change.yields else None
    return {"yields": change.yields, "deadline": None if deadline is None else deadline.at}


def _stored(deadline: Deadline | None) -> str | None:
    return None if deadline is None else json.dumps(deadline.to_json())


def _record(record: Record, claimed: Claim, executor: Executor) -> dict[str, Any]:
    return {
        "run": claimed.run.id,
        "seq": record.seq,
        "step": record.step,
        "kind": record.kind.value,
        "iteration": record.iteration,
        "attempt": record.attempt,
        "state": "committed" if record.failure is None or record.swallows else "failed",
        "failure": id_of(record.failure),
        "undoes": record.undoes,
        "started_at": claimed.facts.now,
        "worker": executor.id,
    }


def _columns(claimed: Claim, run: Run) -> dict[str, Any]:
    before = claimed.run
    # What was inherited has been merged into the context that the claim gave, and is written with it.
    context_changed = run.context != before.context or before.inherited is not None
    result_changed = run.result != before.result
    return {
        "run": run.id,
        "state": run.state.value,
        "step": run.step,
        "next_step": run.next_step,
        "seq": run.seq,
        "instance": run.instance,
        "iteration": run.iteration,
        "attempt": run.attempt,
        "handled": run.handled,
        "not_before": run.not_before,
        "undo_seq": run.undo_seq,
        "compensation_seq": run.compensation_seq,
        "handler_seq": run.handler_seq,
        "context": run.context if context_changed else None,
        "context_changed": context_changed,
        "failure": id_of(run.failure),
        "obstacle": id_of(run.obstacle),
        "failed": before.failure is not run.failure,
        "result": run.result if result_changed else None,
        "result_changed": result_changed,
        "reason": run.reason,
        "needs": run.needs,
        "giving_up": id_of(run.giving_up),
        "own_deadline": _stored(kept_deadline(claimed.saga, run)),
        "rollback_by": run.rollback_by,
        "body_seq": run.body_seq,
        "finaliser_seq": run.finaliser_seq,
        "undo_from": run.undo_from,
        "unresolved": id_of(run.unresolved),
        "version": run.version,
        "ended": run.state.ended,
    }
