"""Plans of rollbacks that somebody asks for: of what has committed, at once or as soon as nothing of it is active."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from scoop_outbox.answers import MOST_ACTIVE, ActiveRun, Answer, RollbackAnswer
from scoop_outbox.core.plans.ancestors import Top, ask_above, hear_from_above, top_of
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.failures import Known, Writing, id_of, recall, shown
from scoop_outbox.core.plans.requests import asked_elsewhere, cancel, pass_on, read_target
from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import BEGIN, COMMIT, ROLLBACK, Plan, Statement, ask, document, statement
from scoop_outbox.failure import Failure, RollbackRequested
from scoop_outbox.wire.control import Order

IfActive = Literal["refuse", "cancel", "wait"]
"""What becomes of a request for something that is active."""

_LOWEST = uuid.UUID(int=0)
_PAUSES = (0.01, 0.05, 0.1)
"""Seconds after which it is tried again to lock a run: a worker that only looks at it is done in no time."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What an id means, and how it stands.

    Attributes:
        known: whether it means anything here: a run, or a message that has been taken in or will be.
        committed: its runs that can be rolled back.
        to_come: whether runs of it are still to begin.
        can_give_up: whether one of its runs can.
        rolled_back: whether it has runs, and all of them have been rolled back.
        undone: whether they have been, or are being rolled back because somebody asked for it.
        abandoned: whether one of its runs could not be rolled back, whatever has become of that.
        active: runs that have not ended: its own, those above and those below.
        active_below: whether some of them are not above it.
        stuck: whether a run of it, or below it, could not be rolled back.
        waits: whether a request for it waits.
        expired: whether its hierarchy has been pruned, or its payload erased.
        elsewhere: the states of those who handle the message in other homes.
        top: what is above lives in another home from here on, which has not said that it has ended.
    """

    known: bool
    committed: Sequence[uuid.UUID]
    to_come: bool
    can_give_up: bool
    rolled_back: bool
    undone: bool
    abandoned: bool
    active: tuple[ActiveRun, ...]
    active_below: bool
    stuck: bool
    waits: bool
    expired: bool
    elsewhere: frozenset[str] = frozenset()
    top: Top | None = None

    @property
    def can_be_undone(self) -> bool:
        """Whether somebody has committed, here or elsewhere."""
        return bool(self.committed) or RunState.COMMITTED.value in self.elsewhere


def roll_back(
    target: uuid.UUID, reason: str | None, source: str, if_active: IfActive, known: Known, hints: Hints | None
) -> Plan[RollbackAnswer]:
    """Roll back what has committed, with everything below it.

    Args:
        target: a run, or a message: then each run that handles it. Those that are still to come execute nothing.
        reason: in words, for the failure that the compensations are told.
        source: who asks.
        if_active: what becomes of the request if a run at, above or below the target has not ended.
        known: the failures that this process knows.
        hints: told which runs have mail; None leaves it to the workers to find it.

    Raises:
        ValueError: `if_active` is none of these words.
    """
    _check(if_active)
    found, answered = yield from _judged(target, if_active, hints)
    if answered != Answer.ACCEPTED:
        return answered
    writing = Writing(known)
    failure = writing.name(_requested(reason, source))
    stored = [*writing.statements(), statement("store_rollback", target=target, failure=id_of(failure))]
    if not found.active and (found.top is None or if_active != "wait"):
        if (yield from _carry_out(target, found, failure, stored, hints, _PAUSES)):
            writing.written()
            return RollbackAnswer(Answer.ACCEPTED)
        # Somebody was faster, or holds a run: then the request is left for later.
        found = yield from _look(target)
        answer = _judge(found, if_active)
        if answer is not Answer.ACCEPTED:
            return _answered(answer, found)
    *_, new, _ = yield from ask(BEGIN, *stored, COMMIT)
    writing.written()
    accepted = bool(new)
    if new and found.top is not None:
        yield from ask_above(target, found.top, hints)
    if if_active == "cancel" and (found.can_give_up or found.to_come):
        accepted |= (yield from cancel(target, reason, source, known, hints)) is Answer.ACCEPTED
    return RollbackAnswer(Answer.ACCEPTED if accepted else Answer.ALREADY_REQUESTED)


def judge(target: uuid.UUID, if_active: IfActive) -> Plan[RollbackAnswer]:
    """Return what would become of a request that is stored now, and carried out when nothing is active any more.

    Raises:
        ValueError: `if_active` is none of the words, or `"cancel"`: what is cancelled cannot be taken back.
    """
    _check(if_active)
    if if_active == "cancel":
        raise ValueError("if_active='cancel' cannot be undone, should the session not commit: ask without session=")
    _, answered = yield from _judged(target, if_active, None)
    return answered


def _judged(target: uuid.UUID, if_active: IfActive, hints: Hints | None) -> Plan[tuple[_Found, RollbackAnswer]]:
    """Return what becomes of a request; those who know are asked whether all runs above have ended.

    A request that waits is one for which they are asked as long as it takes.
    """
    found = yield from _look(target)
    answer = _judge(found, if_active)
    if answer is Answer.ACCEPTED and found.top is not None and not found.active and if_active != "wait":
        above = yield from hear_from_above(target, found.top, hints)
        if above is None:
            return found, RollbackAnswer(Answer.UNANSWERED, home=found.top.home)
        if above:
            return found, RollbackAnswer(Answer.REFUSED_ACTIVE, above)
    return found, _answered(answer, found)


def store(target: uuid.UUID, reason: str | None, source: str, known: Known) -> Plan[bool]:
    """Store a request in whatever transaction is open; answer whether none waits for the same already."""
    failure = _requested(reason, source)
    given = {
        "target": str(target),
        "failure": str(known.draw()),
        "type": failure.type,
        "message": None if failure.message is None else shown(failure.message),
        "source": shown(failure.source),
        "document": failure.dumps(),
    }
    (stored,) = yield from ask(statement("store_rollback_joined", document=document(given)))
    return bool(stored)


def read_waiting(
    after: uuid.UUID | None, resting: Sequence[uuid.UUID], most: int
) -> Plan[Sequence[tuple[uuid.UUID, uuid.UUID]]]:
    """Return requests that wait, and whose own runs have all ended: what they are about, and the failure they tell.

    Args:
        after: the last that was returned before, None to begin with the first.
        resting: those that are left out.
        most: how many.
    """
    look = statement("read_waiting_rollbacks", after=after or _LOWEST, resting=list(resting), most=most)
    (waiting,) = yield from ask(look)
    return [(target, failure) for target, failure in waiting]


def try_waiting(target: uuid.UUID, reason: uuid.UUID, known: Known, hints: Hints) -> Plan[Answer | None]:
    """Carry out a request that has waited until nothing was active; return what has become of it.

    Any number of processes may do this at the same time: each run is told once.

    Args:
        target: what it is about.
        reason: the failure that the runs are told.
        known: the failures that this process knows.
        hints: told which runs have mail.

    Returns:
        None if it still waits.
    """
    found = yield from _look(target)
    if found.active:
        return None
    answer = _judge(replace(found, waits=False), "wait")
    if answer is Answer.ACCEPTED and found.top is not None:
        yield from ask_above(target, found.top, hints)
        return None  # the answer is found the next time
    if answer is Answer.ACCEPTED:
        failure = (yield from recall([reason], known))[reason]
        if not found.can_be_undone:
            (asked,) = yield from ask(statement("is_asked_to_give_up", run=target, deadline=None))
            if asked[0][0]:
                return None  # those that are still to come will find it
        told = yield from _carry_out(target, found, failure, (), hints)
        return answer if told and not found.to_come else None
    yield from ask(statement("close_rollback", target=target, outcome=answer.value))
    return answer


def _carry_out(
    target: uuid.UUID,
    found: _Found,
    failure: Failure,
    first: Sequence[Statement],
    hints: Hints | None,
    pauses: Sequence[float] = (),
) -> Plan[bool]:
    """Tell runs to roll back, in one transaction with what is written `first`; answer whether any was told.

    No lock is waited for: a step may hold it as long as it takes. Those that are still to come find the request when
    they begin, as they find a cancellation. It goes on waiting as long as there are any: they may be shielded.
    """
    coming = [statement("request_cancellation", target=target, failure=id_of(failure))] if found.to_come else []
    elsewhere = [statement("roll_back_elsewhere", **asked_elsewhere(target, Order.ROLL_BACK, failure))]
    elsewhere = elsewhere if found.elsewhere else []
    runs = list(found.committed)
    if not (yield from _hold(target, runs, pauses)):
        return False
    *answers, told = yield from ask(
        *first, *coming, *elsewhere, statement("roll_back_runs", runs=runs, failure=id_of(failure))
    )
    ordered = bool(elsewhere and answers[-1])
    if not told and not coming and not ordered:
        yield from ask(ROLLBACK)
        return False
    done = len(told) == len(found.committed) and not coming
    closing = [statement("close_rollback", target=target, outcome=Answer.ACCEPTED.value)] if done else []
    yield from ask(statement("report_reopened", runs=[run_id for run_id, *_ in told]), *closing, COMMIT)
    pass_on(told, hints)
    if hints is not None:
        hints.outbox()
    if coming:
        (posted,) = yield from ask(statement("deliver_cancellation", target=target))
        pass_on(posted, hints)
    return True


def _hold(target: uuid.UUID, runs: Sequence[uuid.UUID], pauses: Sequence[float]) -> Plan[bool]:
    """Lock runs, in a transaction that goes on if all of them could be; try again after each of these pauses."""
    for pause in (*pauses, None):
        _, held = yield from ask(BEGIN, statement("hold_runs", runs=list(runs), target=target))
        if held[0][0]:
            return True
        yield from ask(ROLLBACK)
        if pause is not None:
            yield from ask(statement("pause", seconds=pause))
    return False


def _look(target: uuid.UUID) -> Plan[_Found]:
    meant = yield from read_target(target)
    runs, to_come = meant.runs, meant.to_come
    in_the_way, waiting, handling, tops = yield from ask(
        statement("read_in_the_way", target=target, most=MOST_ACTIVE),
        statement("is_rollback_waiting", target=target),
        statement("read_elsewhere", target=target),
        statement("read_top_elsewhere", target=target),
    )
    elsewhere = frozenset(state for (state,) in handling)
    states = [RunState(state) for _, _, state, *_ in runs]
    ended = {state.value for state in states} | elsewhere
    active = [row for row in in_the_way if row[3] != RunState.ROLLBACK_FAILED.value]
    return _Found(
        known=bool(runs) or to_come or meant.taken_in or bool(elsewhere),
        committed=[run_id for run_id, _, state, *_ in runs if state == RunState.COMMITTED.value],
        to_come=to_come,
        can_give_up=any(can_give_up for _, can_give_up, *_ in runs),
        rolled_back=ended == {RunState.ROLLED_BACK.value},
        undone=bool(ended)
        and all(state == RunState.ROLLED_BACK.value or asked for _, _, state, asked, _ in runs)
        and elsewhere <= {RunState.ROLLED_BACK.value, RunState.ROLLING_BACK.value},
        abandoned=RunState.ROLLBACK_FAILED in states,
        active=tuple(ActiveRun(*row[:4]) for row in active),
        active_below=any(not above for *_, above in active),
        stuck=len(active) < len(in_the_way),
        waits=waiting[0][0],
        expired=meant.pruned or any(erased for *_, erased in runs),
        elsewhere=elsewhere,
        top=top_of(tops),
    )


def _judge(found: _Found, if_active: IfActive) -> Answer:
    """Return `ACCEPTED` when something is to be done, now or later, and else why nothing is."""
    nothing = _judge_known(found)
    if nothing is not None:
        return nothing
    later = bool(found.active) or (found.to_come and not found.can_be_undone)
    if later and found.undone and not found.to_come:
        return Answer.ALREADY_REQUESTED
    if (later or found.top is not None) and found.waits and if_active != "cancel":
        return Answer.ALREADY_REQUESTED
    if found.active:
        wanted = if_active == "wait" or (if_active == "cancel" and found.active_below)
        return Answer.ACCEPTED if wanted else Answer.REFUSED_ACTIVE
    return _judge_ended(found)


def _judge_known(found: _Found) -> Answer | None:
    """Return why nothing is to be done whatever else is known; None when something may be."""
    if not found.known and not found.expired:
        return Answer.UNKNOWN
    if found.top is not None and found.top.is_launched_there:
        return Answer.ASK_ELSEWHERE
    if found.rolled_back and not found.to_come:
        return Answer.ALREADY_ROLLED_BACK
    return Answer.EXPIRED if found.expired else None


def _judge_ended(found: _Found) -> Answer:
    """Return likewise what becomes of a request for something of which nothing is active."""
    if found.stuck:
        return Answer.REFUSED_ROLLBACK_FAILED
    if found.can_be_undone or found.to_come:
        return Answer.ACCEPTED
    return Answer.ABANDONED if found.abandoned else Answer.NOTHING_TO_DO


def _check(if_active: str) -> None:
    if if_active not in get_args(IfActive):
        raise ValueError(f"if_active is one of {', '.join(map(repr, get_args(IfActive)))}, and not {if_active!r}")


def _requested(reason: str | None, source: str) -> Failure:
    return Failure(RollbackRequested.__name__, reason, source).within_limits()


def _answered(answer: Answer, found: _Found) -> RollbackAnswer:
    if answer is Answer.ASK_ELSEWHERE and found.top is not None:
        return RollbackAnswer(answer, home=found.top.home)
    return RollbackAnswer(answer, found.active if answer is Answer.REFUSED_ACTIVE else ())
