"""Plans: what is asked of the database, and in which order. The rules are in `decide` and `transition`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Protocol

from scoop_outbox.context import merge
from scoop_outbox.core import decide as rule
from scoop_outbox.core import transition
from scoop_outbox.core.rows import CLOCK, MAIL, MESSAGE, children_of, instance_of, message_of, run_of
from scoop_outbox.core.run import ChildState, Facts, Run, RunState
from scoop_outbox.core.statement import (
    BEGIN,
    COMMIT,
    COMMIT_AND_BEGIN,
    ROLLBACK,
    SAVEPOINT,
    Call,
    Outcome,
    Plan,
    Refused,
    Rows,
    Statement,
    ask,
    statement,
)
from scoop_outbox.core.transition import Mail, Raised, Returned, Transition
from scoop_outbox.failure import Failure
from scoop_outbox.message import Message
from scoop_outbox.saga import Callback, Saga, is_async
from scoop_outbox.scope import Emission, Result

STEPS_IN_A_ROW = 32
"""How many steps of one run a slot executes before it looks at other runs: a run that repeats must not starve them."""


class Hints(Protocol):
    """Told after a commit who may have something to do. Only a hint: losing one costs time, never correctness."""

    def outbox(self) -> None:
        """Messages were written to the outbox."""

    def mail(self, service: str, saga: str, run_id: uuid.UUID, delay: float) -> None:
        """A run of `service` got mail that is due in `delay` seconds."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What an execution needs to know of the process that does it.

    Attributes:
        sagas: the sagas of this service by name.
        id: names this process in failures and step records.
        coroutines: whether the driver at work can call `async def` callbacks; otherwise it calls `def` ones.
        chance: draws a number in [0, 1) for jitter.
        draining: whether the process ends: then a run is left to others after the step in hand.
    """

    service: str
    sagas: Mapping[str, Saga]
    id: str
    hints: Hints
    coroutines: bool
    chance: Callable[[], float]
    draining: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class _Claim:
    """A run under our row lock, and what was read after the lock was granted."""

    run: Run
    mail: list[int]
    facts: Facts
    message: Message
    saga: Saga
    source: str


class Execution(Enum):
    """How far `execute` got."""

    NOTHING = auto()  # another worker holds the run, or it is none of ours
    DONE = auto()
    OTHER_COLOUR = auto()  # the next callback is for the other driver


def execute(run_id: uuid.UUID, worker: Worker) -> Plan[Execution]:
    """Execute a run as far as it goes: one transaction a step, and in each exactly one thing."""
    claim = yield from _claim(run_id, worker)
    if claim is None:
        return Execution.NOTHING
    for turn in range(1, STEPS_IN_A_ROW + 1):
        due = rule.decide(claim.saga, claim.run, claim.facts, claim.source)
        call = _call(due, claim)
        outcome: Outcome | None = None
        if call is not None:
            if is_async(call.callback) is not worker.coroutines:
                yield from ask(ROLLBACK)
                return Execution.OTHER_COLOUR
            outcome = yield call
        more = turn < STEPS_IN_A_ROW and not worker.draining()
        if isinstance(outcome, Raised) and not outcome.open:
            go_on = yield from _settle_failure(claim, due, outcome, worker)
        else:
            try:
                change = _change(due, claim, outcome, worker.chance)
                go_on = yield from _settle(claim, change, worker, go_on=more)
            except Refused as refusal:
                if not isinstance(outcome, Returned):
                    raise
                failure = Failure.of(refusal.error, source=claim.source)
                raised = Raised(refusal.error, failure, outcome.context, open=False)
                go_on = yield from _settle_failure(claim, due, raised, worker)
        if go_on is None:
            break
        claim = go_on
    return Execution.DONE


def _settle_failure(claim: _Claim, due: rule.Decision, outcome: Raised, worker: Worker) -> Plan[_Claim | None]:
    """Record the failure of a callback whose transaction is gone, and with it the savepoint.

    The database refused to commit what it wrote (a deferred constraint, say), or it ended the transaction itself.
    So the failure is written in a transaction of its own, unless another worker was faster and executes it again.
    """
    again = yield from _claim(claim.run.id, worker)
    if again is None or again.run.seq != claim.run.seq:
        return again
    return (yield from _settle(again, _change(due, again, outcome, worker.chance), worker, go_on=True))


def _claim(run_id: uuid.UUID, worker: Worker) -> Plan[_Claim | None]:
    """Lock a run and read what there is to know about it.

    The order matters. The lock comes first and with it the mail; what is read of children comes after, so that mail
    which is dropped later is mail whose news was seen.
    """
    _, locked, _, children = yield from ask(
        BEGIN, statement("claim_run", run=run_id), SAVEPOINT, statement("read_children", run=run_id)
    )
    if not locked:
        yield from ask(ROLLBACK)
        return None
    run, now, mail = run_of(locked[0]), locked[0][CLOCK], locked[0][MAIL]
    if run.state.ended:
        yield from ask(statement("drop_mail", ids=mail), COMMIT)  # it told of something that no longer matters
        return None
    saga = worker.sagas.get(run.saga)
    if saga is None:
        yield from ask(ROLLBACK)  # another deployment's work
        return None
    instance = None
    if run.state is RunState.ROLLING_BACK:
        run = replace(run, context=merge(run.context, run.inherited), inherited=None)
        (found,) = yield from ask(statement("read_instance", run=run.id))
        instance = instance_of(found)
    is_open, ended = children_of(children)
    message = message_of(locked[0][MESSAGE], saga.schema)
    return _Claim(run, mail, Facts(now, is_open, ended, instance), message, saga, f"{run.saga}[{worker.id}]")


def _claiming_again(run: Run) -> list[Statement]:
    """Lock a run that goes straight on, in the round trip that commits what it did."""
    statements = [statement("claim_again", run=run.id, seq=run.seq, state=run.state.value), SAVEPOINT]
    if run.state is RunState.ROLLING_BACK:
        statements.append(statement("read_instance", run=run.id))
    return statements


def _claimed_again(claim: _Claim, run: Run, rows: Sequence[Rows]) -> Plan[_Claim | None]:
    locked, _, *found = rows
    if not locked:
        yield from ask(ROLLBACK)  # somebody was faster, or has asked for something: the mail is still there
        return None
    facts = Facts(locked[0][0], instance=instance_of(found[0]) if found else None)
    return replace(claim, run=run, facts=facts)


def _call(due: rule.Decision, claim: _Claim) -> Call | None:
    """Return the call that a decision asks for, if it asks for one."""
    run, saga = claim.run, claim.saga

    def make(callback: Callback, step: str, seq: int, kind: str, **more: Any) -> Call:
        key = f"{run.id}:{seq}:{kind}"
        return Call(callback, run, step, claim.message, key=key, source=claim.source, **more)

    match due:
        case rule.Invoke(step, iteration):
            results = [
                Result(child.saga, child.message_id, None if child.result is None else json.loads(child.result))
                for child in claim.facts.children
                if child.state is ChildState.COMMITTED
            ]
            return make(
                step.invoke,
                step.name,
                run.instance + 1,
                "step",
                iteration=iteration,
                attempt=run.attempt,
                results=results,
                check=lambda value: transition.next_step(saga, step.name, value),
            )
        case rule.HandleChildFailure(step, handler, failure):
            return make(
                handler,
                step.name,
                run.instance,
                "child-failure",
                iteration=run.iteration,
                attempt=run.handled,
                error=failure.to_exception(),
                handles=True,
                check=lambda value: value is None or transition.next_step(saga, step.name, value),
            )
        case rule.Compensate(step, compensation, instance):
            error = None if run.failure is None else run.failure.to_exception()
            return make(
                compensation,
                step.name,
                instance.seq,
                "compensation",
                iteration=instance.iteration,
                attempt=run.attempt,
                error=error,
            )
        case rule.HandleChildRollbackFailure(step, handler, instance, failure):
            return make(
                handler,
                step.name,
                instance.seq,
                "child-rollback-failure",
                iteration=instance.iteration,
                attempt=run.attempt,
                error=failure.to_exception(),
                handles=True,
            )
        case _:
            return None


def _change(due: rule.Decision, claim: _Claim, outcome: Outcome | None, chance: Callable[[], float]) -> Transition:
    """Return what becomes of the run, now that the decision was carried out."""
    run, saga, now = claim.run, claim.saga, claim.facts.now
    raised = outcome if isinstance(outcome, Raised) else None
    returned = outcome if isinstance(outcome, Returned) else Returned(None, (), run.context, None)
    match due:
        case rule.Wait(until):
            return Transition(run, mail=Mail.DROP, wake_at=until)
        case rule.Invoke():
            if raised is not None:
                return transition.step_raised(run, due, raised, now, chance())
            return transition.step_returned(saga, run, due, returned)
        case rule.HandleChildFailure():
            if raised is not None:
                return transition.handler_raised(run, due, raised)
            return transition.handler_returned(saga, run, due, returned)
        case rule.RollBack(failure):
            return transition.roll_back(run, failure, run.context)
        case rule.AskChildren():
            return transition.ask_children(run, due, claim.source)
        case rule.Compensate():
            if raised is not None:
                return transition.compensation_raised(run, due, raised, now, chance())
            return transition.compensation_returned(run, due, returned)
        case rule.HandleChildRollbackFailure():
            if raised is not None:
                return transition.child_rollback_not_handled(run, due, raised)
            return transition.child_rollback_handled(run, due, returned)
        case rule.CompensationFailed():
            return transition.compensation_failed(run, due, now, chance())
        case rule.Undone(instance):
            return transition.undone(run, instance)
        case rule.Commit():
            return transition.committed(run)
        case rule.EndRolledBack():
            return transition.rolled_back(run)
        case rule.EndRollbackFailed(failure):
            return transition.rollback_failed(run, failure)
        case rule.Park(reason):
            return transition.parked(run, reason)


def _settle(claim: _Claim, change: Transition, worker: Worker, *, go_on: bool) -> Plan[_Claim | None]:
    """Write a transition, commit it, and claim the run again in the same round trip if it goes straight on."""
    before, after = claim.run, change.run
    statements: list[Statement] = []
    places: dict[str, int] = {}

    def add(name: str, /, **params: Any) -> None:
        places[name] = len(statements)
        statements.append(statement(name, **params))

    advances = change.record is not None and change.record.seq == after.instance != before.instance
    if advances and after.handled == 0:
        add("advance_run", **_advance(change, claim, worker))
    elif change.record is not None:
        add("record_step", **_record(change, claim, worker))
    if change.undone is not None:
        add("mark_undone", run=after.id, seq=change.undone)
    if change.consumes is not None:
        add("consume_failures", run=after.id, seq=change.consumes)
    if after != before and "advance_run" not in places:
        add("update_run", **_columns(after, failed=before.failure is not after.failure))
    if change.emissions:
        add("launch", **emitted(change.emissions, after, change.record.seq if change.record else after.seq))
    if change.asks is not None:
        seq, reason = change.asks
        add("ask_children", run=after.id, seq=seq, failure=reason.dumps(), context=after.context)
    if after.state.ended and after.parent_run is not None and after.state is not RunState.PARKED:
        add("tell_parent", **_outcome(after))
    if change.mail is Mail.DROP and "advance_run" not in places:
        add("drop_mail", ids=claim.mail)
    elif change.mail is Mail.DROP_IF_WAITING:
        add("drop_mail_if_waiting", ids=claim.mail, run=after.id)
    elif not go_on:
        add("defer_mail", ids=claim.mail)
    if change.wake_at is not None:
        add("post_timer", run=after.id, service=after.service, saga=after.saga, due=change.wake_at)
    ahead = go_on and change.mail is Mail.KEEP
    statements.append(COMMIT_AND_BEGIN if ahead else COMMIT)
    settled = len(statements)
    if ahead:
        statements += _claiming_again(after)
    rows = yield from ask(*statements)
    _tell(worker.hints, change, places, rows)
    if ahead:
        return (yield from _claimed_again(claim, after, rows[settled:]))
    if go_on and change.mail is Mail.DROP_IF_WAITING and not rows[places["drop_mail_if_waiting"]][0][0]:
        return (yield from _claim(after.id, worker))  # nobody listens to what was launched: nothing to wait for
    return None


def _tell(hints: Hints, change: Transition, places: Mapping[str, int], rows: Sequence[Rows]) -> None:
    if change.emissions:
        hints.outbox()
    for name in ("ask_children", "tell_parent"):
        if name in places:
            for run_id, service, saga, delay in rows[places[name]]:
                hints.mail(service, saga, run_id, delay)


def _advance(change: Transition, claim: _Claim, worker: Worker) -> dict[str, Any]:
    after = change.run
    return {
        "run": after.id,
        "seq": after.seq,
        "step": after.step,
        "next_step": after.next_step,
        "iteration": after.iteration,
        "attempt": claim.run.attempt,
        "state": after.state.value,
        "context": after.context,
        "result": after.result,
        "ended": after.state.ended,
        "mail": claim.mail if change.mail is Mail.DROP else [],
        "started_at": claim.facts.now,
        "worker": worker.id,
    }


def _record(change: Transition, claim: _Claim, worker: Worker) -> dict[str, Any]:
    record = change.record
    assert record is not None  # noqa: S101 - narrows the type for the caller above
    return {
        "run": change.run.id,
        "seq": record.seq,
        "step": record.step,
        "kind": record.kind.value,
        "iteration": record.iteration,
        "attempt": record.attempt,
        "state": "committed" if record.failure is None else "failed",
        "failure": None if record.failure is None else record.failure.dumps(),
        "undoes": record.undoes,
        "started_at": claim.facts.now,
        "worker": worker.id,
    }


def _columns(run: Run, *, failed: bool) -> dict[str, Any]:
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
        "context": run.context,
        "failure": None if run.failure is None else run.failure.dumps(),
        "failed": failed,
        "result": run.result,
        "reason": run.reason,
        "ended": run.state.ended,
    }


def _outcome(run: Run) -> dict[str, Any]:
    failed = run.state is not RunState.COMMITTED
    return {
        "message": run.message_id,
        "service": run.service,
        "saga": run.saga,
        "state": run.state.value,
        "result": None if failed else run.result,
        "failure": run.failure.dumps() if failed and run.failure is not None else None,
        "run": run.id,
    }


def emitted(emissions: Sequence[Emission], run: Run | None, seq: int) -> dict[str, Any]:
    """Return the parameters of `launch` for messages of a run, or for messages from outside when there is none."""
    lineage = "" if run is None else ",".join(map(str, run.lineage))
    return {
        "ids": [emission.message_id for emission in emissions],
        "topics": [emission.topic for emission in emissions],
        "keys": [emission.key for emission in emissions],
        "bodies": [emission.body for emission in emissions],
        "content_types": [emission.content_type for emission in emissions],
        "headers": [json.dumps(_headers(emission, lineage)) for emission in emissions],
        "awaited": [emission.awaited and run is not None for emission in emissions],
        "run": None if run is None else run.id,
        "seq": seq,
    }


def _headers(emission: Emission, lineage: str) -> dict[str, str]:
    headers = dict(emission.headers)
    if emission.awaited and lineage:
        headers["scoop-lineage"] = lineage
    if emission.context is not None:
        headers["scoop-context"] = emission.context
    headers["scoop-launched-at"] = json.dumps(emission.launched_at.to_json())
    return headers
