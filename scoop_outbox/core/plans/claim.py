"""Claiming: a run under our row lock, and what is known of it from then on."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from scoop_outbox._deadlines import Deadline
from scoop_outbox.context import merge
from scoop_outbox.core.deadline import deadline_of
from scoop_outbox.core.decide import giving_up
from scoop_outbox.core.plans.failures import Known, recall
from scoop_outbox.core.plans.healing import failure_anew, heal, replace_failure
from scoop_outbox.core.plans.strategy import read_outlook
from scoop_outbox.core.rows import (
    CANCELLATION,
    CLOCK,
    MAIL,
    MESSAGE,
    body_of,
    children_of,
    failure_of,
    failures_of_body,
    failures_of_children,
    failures_of_instance,
    failures_of_run,
    instance_of,
    message_of,
    run_of,
)
from scoop_outbox.core.run import Body, Facts, Instance, Outside, Run, RunState, changed
from scoop_outbox.core.statement import BEGIN, COMMIT, ROLLBACK, SAVEPOINT, Plan, Rows, Statement, ask, statement
from scoop_outbox.core.versions import Deployment
from scoop_outbox.external import FAILED, External
from scoop_outbox.failure import Failure
from scoop_outbox.message import Message
from scoop_outbox.saga import Saga

_SOON = timedelta(milliseconds=20)
"""When to look again at a run that cannot go on yet, because somebody decides about its parent."""

Unhandled = Sequence[str]
"""Topics that no saga is subscribed to, one for each message that was launched there."""


class Hints(Protocol):
    """Told after a commit who may have something to do. Only a hint: losing one costs time, never correctness."""

    def outbox(self) -> None:
        """Messages were written to the outbox."""

    def ended(self, message_id: uuid.UUID) -> None:
        """A root run has ended, and with it its hierarchy; or a message has been taken in that nobody handles."""

    def mail(self, service: str, saga: str, version: str, run_id: uuid.UUID, delay: float) -> None:
        """A run of `service`, of a version of its saga or of none yet, got mail that is due in `delay` seconds."""


class Reports(Protocol):
    """Told after a commit, once and by whoever committed it, of what is counted and what operators should hear of."""

    def changed(self, run: Run, step: str | None, message: Message) -> None:
        """A run has got into another state, at this step if it was at one."""

    def cancels_children(self, run: Run, reason: Failure, message: Message) -> None:
        """A run has told its children to give up: because it does, or because one of them has failed."""

    def expires_children(self, run: Run, reason: Failure, message: Message) -> None:
        """Children of a run that had not started by their deadline have failed."""

    def leaves_behind(self, run: Run, participants: Sequence[tuple[str, str]], message: Message) -> None:
        """A run does not wait any longer for children that have not started."""

    def healed(self, run: Run, message: Message) -> None:
        """A run whose rollback had failed goes on, for what had stopped it has been rolled back."""

    def passes_over(self, run: Run, step: str | None, message: Message) -> None:
        """A rollback goes on though something could not be undone."""

    def discarded(self, run: Run, step: str, message: Message) -> None:
        """What a step has done was undone, for its run was asked to give up meanwhile."""

    def unhandled(self, topics: Unhandled) -> None:
        """Messages were launched on topics that no saga is subscribed to."""


class _Silent:
    def changed(self, run: Run, step: str | None, message: Message) -> None: ...
    def cancels_children(self, run: Run, reason: Failure, message: Message) -> None: ...
    def expires_children(self, run: Run, reason: Failure, message: Message) -> None: ...
    def leaves_behind(self, run: Run, participants: Sequence[tuple[str, str]], message: Message) -> None: ...
    def healed(self, run: Run, message: Message) -> None: ...
    def passes_over(self, run: Run, step: str | None, message: Message) -> None: ...
    def discarded(self, run: Run, step: str, message: Message) -> None: ...
    def unhandled(self, topics: Unhandled) -> None: ...


@dataclass(frozen=True, slots=True)
class Executor:
    """What an execution needs to know of the process that does it.

    Attributes:
        sagas: the sagas of this service by name.
        id: names this process in failures and step records.
        coroutines: whether the driver at work can call `async def` callbacks; otherwise it calls `def` ones.
        chance: draws a number in [0, 1) for jitter.
        failures: those that this process knows.
        draining: whether the process ends: then a run is left to others after the step in hand.
        via_broker: whether a broker carries messages, so that each service takes them in at a time of its own.
        across: whether sagas of other homes may be waited for.
        deployment: which versions of the sagas living workers have; this process is alone unless given.
        reports: told of what has become of runs.
    """

    service: str
    sagas: Mapping[str, Saga]
    id: str
    hints: Hints
    coroutines: bool
    chance: Callable[[], float]
    failures: Known
    draining: Callable[[], bool] = lambda: False
    via_broker: bool = False
    across: Callable[[], bool] = lambda: False
    deployment: Deployment = field(default_factory=Deployment)
    reports: Reports = field(default_factory=_Silent)


@dataclass(slots=True)
class Claim:
    """A run under our row lock, and what was read after the lock was granted."""

    run: Run
    mail: list[int]
    facts: Facts
    message: Message
    saga: Saga
    source: str


def claim(run_id: uuid.UUID, executor: Executor) -> Plan[Claim | None]:
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
    named = failures_of_run(locked[0], children)
    failures = (yield from recall(named, executor.failures)) if named else {}
    run, now, mail = run_of(locked[0], failures), locked[0][CLOCK], locked[0][MAIL]
    cancellation = failure_of(locked[0][CANCELLATION], failures)
    saga = executor.sagas.get(run.saga)
    if run.state.ended:
        parked = saga is not None and run.state is RunState.PARKED and _gives_up_parked(saga, run, now, cancellation)
        message = message_of(locked[0][MESSAGE], None)
        return (yield from _claim_ended(run, mail, now, message, executor, gives_up=parked))
    if saga is None:
        yield from ask(ROLLBACK)  # another deployment's work
        return None
    is_open, ended, child_deadline = children_of(children, failures)
    source = f"{run.saga}[{executor.id}]"
    if run.state is RunState.ROLLING_BACK and not is_open:
        anew = failure_anew(run, ended, now, source)
        if anew is not None:
            yield from replace_failure(run, anew, executor.failures)
            return (yield from claim(run_id, executor))
    deadline = deadline_of(saga, run) if run.state is RunState.RUNNING else None
    facts = Facts(*(now, is_open, ended), cancellation=cancellation, deadline=deadline, child_deadline=child_deadline)
    if saga.strategy is not None:
        facts = replace(facts, outlook=(yield from read_outlook(run, now)))
    gives_up = giving_up(saga, run, facts) is not None
    begins = run.state is RunState.RUNNING and run.seq == 0 and not gives_up
    if run.lane is not None and begins and not (yield from _holds_lane(run)):
        ahead = deadline if deadline is not None and deadline.at > now else None
        taken = yield from _take_lane(run, run.lane, mail, ahead)
        return (yield from claim(run_id, executor)) if taken else None
    facts = yield from _read_outside(saga, run, facts, executor)
    if run.state is RunState.ROLLING_BACK:
        run = changed(run, context=merge(run.context, run.inherited))
    elif is_open and (gives_up or _fails_fast(saga, run)):
        facts = yield from _read_open(run, facts, executor)
    facts = yield from _read_executions(run, facts, executor)
    message = message_of(locked[0][MESSAGE], saga.schema)
    return Claim(run, mail, facts, message, saga, source)


def _read_executions(run: Run, facts: Facts, executor: Executor) -> Plan[Facts]:
    """Return facts with the execution that is to be undone next, and the one whose finaliser comes next."""
    if run.state is RunState.ROLLING_BACK:
        (found,) = yield from ask(statement("read_instance", run=run.id))
        facts = replace(facts, instance=(yield from _instance(found, run, executor)))
    if run.body_seq is not None:
        (found,) = yield from ask(_body_statement(run))
        facts = replace(facts, body=(yield from _body(found, executor)))
    return facts


def _gives_up_parked(saga: Saga, run: Run, now: datetime, cancellation: Failure | None) -> bool:
    """Tell whether a parked run gives up: it needs nobody's leave for that."""
    running = changed(run, state=RunState.RUNNING)
    facts = Facts(now, cancellation=cancellation, deadline=deadline_of(saga, running))
    return run.undo_seq is None and giving_up(saga, running, facts) is not None


def _claim_ended(
    run: Run, mail: list[int], now: datetime, message: Message, executor: Executor, *, gives_up: bool
) -> Plan[Claim | None]:
    """Claim a run that goes on after all; else drop its mail, which told of something that no longer matters."""
    if gives_up:
        # In the table, and not here alone: what interrupts it now is counted and delayed as for any other run.
        yield from ask(statement("drop_mail", ids=mail), statement("unpark", runs=[run.id], anew=True), COMMIT)
        return (yield from claim(run.id, executor))
    healed: bool | None = False
    if run.state is RunState.ROLLBACK_FAILED:
        healed = yield from heal(run)
    if healed:
        executor.reports.healed(run, message)
        return (yield from claim(run.id, executor))
    if healed is None:
        address = {"run": run.id, "service": run.service, "saga": run.saga, "version": run.version}
        yield from ask(statement("drop_mail", ids=mail), statement("post_timer", **address, due=now + _SOON), COMMIT)
        executor.hints.mail(run.service, run.saga, run.version, run.id, _SOON.total_seconds())
        return None
    yield from ask(statement("drop_mail", ids=mail), COMMIT)
    return None


def _fails_fast(saga: Saga, run: Run) -> bool:
    step = None if run.step is None else saga.get(run.step)
    return step is not None and step.options.fail_fast


def _read_open(run: Run, facts: Facts, executor: Executor) -> Plan[Facts]:
    """Return facts with what counts while children are open that may have to be told: who knows, and who has failed."""
    untold, failed = yield from ask(
        statement("read_untold", run=run.id), statement("read_first_failure", run=run.id, seq=run.instance)
    )
    failures = yield from recall(failures_of_children(failed), executor.failures)
    first = [child for child in children_of(failed, failures)[1] if child.failed]
    told, elsewhere = untold[0]
    return replace(facts, untold=told, elsewhere=elsewhere, first_failure=first[0] if first else None)


def _read_outside(saga: Saga, run: Run, facts: Facts, executor: Executor) -> Plan[Facts]:
    """Return facts with what was said about the work of an external participant, if the run is one's."""
    if not isinstance(saga, External) or run.state is not RunState.RUNNING:
        return facts
    (rows,) = yield from ask(statement("read_outside", run=run.id))
    if not rows:
        return facts
    kind, failure, result, note, source = rows[0]
    told = failure_of(failure, (yield from recall([failure], executor.failures)))
    if kind == "fail" and told is None:  # in SQL
        told = Failure(FAILED, note, source or run.saga).within_limits()
    return replace(facts, outside=Outside(result, told))


def _instance(rows: Rows, run: Run, executor: Executor) -> Plan[Instance | None]:
    """Return the instance to be undone next, with the failures that stand in the way."""
    failures = yield from recall(failures_of_instance(rows), executor.failures)
    return instance_of(rows, run, failures)


def _body_statement(run: Run) -> Statement:
    return statement("read_body", run=run.id, body_seq=run.body_seq, finaliser_seq=run.finaliser_seq)


def _body(rows: Rows, executor: Executor) -> Plan[Body | None]:
    """Return the execution whose finaliser comes next, with the failures of what it has launched."""
    failures = yield from recall(failures_of_body(rows), executor.failures)
    return body_of(rows, failures)


def _holds_lane(run: Run) -> Plan[bool]:
    """Tell whether an ordered run may begin; one that has begun holds its lane until it ends."""
    (entry,) = yield from ask(statement("read_lane_entry", run=run.id))
    return not entry or entry[0][0]


def _take_lane(run: Run, lane: uuid.UUID, mail: list[int], deadline: Deadline | None) -> Plan[bool]:
    """Let a run that is the first of its lane begin; answer whether it is. The transaction ends with this.

    One that is not, and has a deadline, is looked at again then.

    The lane is locked for that long only, and never while a step is executed. If the server loses this commit, it has
    lost nothing: the mail is there again, and whoever follows it asks again.
    """
    timer = [] if deadline is None else [timer_of(run, deadline.at)]
    _, _, taken, *_ = yield from ask(
        statement("without_waiting_for_disk"),
        statement("lock_lane", lane=lane),
        statement("take_lane", run=run.id, mail=mail),
        *timer,
        COMMIT,
    )
    return bool(taken[0][0])


def timer_of(run: Run, due: datetime) -> Statement:
    """Return what has a run looked at again at a point in time."""
    return statement("post_timer", run=run.id, service=run.service, saga=run.saga, version=run.version, due=due)


def reclaim_statements(run: Run, *, children: bool) -> list[Statement]:
    """Lock a run that goes straight on, in the round trip that commits what it did."""
    again = statement("claim_again", run=run.id, seq=run.seq, state=run.state.value, saga=run.saga)
    statements = [again, SAVEPOINT]
    if run.state is RunState.ROLLING_BACK:
        statements.append(statement("read_instance", run=run.id))
    elif children:
        statements.append(statement("read_children", run=run.id))
    if run.body_seq is not None:
        statements.append(_body_statement(run))
    return statements


def claimed_again(claimed: Claim, run: Run, rows: Sequence[Rows], executor: Executor) -> Plan[Claim | None]:
    """Return the claim on `run`, as it stands now, from what the statements of `reclaim_statements` answered."""
    locked, _, *found = rows
    if not locked:
        yield from ask(ROLLBACK)  # somebody was faster, or has asked for something: the mail is still there
        return None
    now, asked = locked[0]
    if asked and run.state is RunState.RUNNING and claimed.facts.cancellation is None:
        yield from ask(ROLLBACK)
        return (yield from claim(run.id, executor))  # somebody has asked it to give up: what it is told is read there
    deadline = deadline_of(claimed.saga, run) if run.state is RunState.RUNNING else None
    body = None if run.body_seq is None else (yield from _body(found.pop(), executor))
    if not found:
        facts = Facts(now, body=body, cancellation=claimed.facts.cancellation, deadline=deadline)
    elif run.state is RunState.ROLLING_BACK:
        facts = Facts(now, instance=(yield from _instance(found[0], run, executor)), body=body)
    else:
        failures = yield from recall(failures_of_children(found[0]), executor.failures)
        is_open, ended, child_deadline = children_of(found[0], failures)
        facts = Facts(
            *(now, is_open, ended),
            body=body,
            cancellation=claimed.facts.cancellation,
            deadline=deadline,
            child_deadline=child_deadline,
        )
    if claimed.saga.strategy is not None:
        facts = replace(facts, outlook=(yield from read_outlook(run, now)))
    return replace(claimed, run=run, facts=facts)
