"""Plans of requests: what somebody asks of runs that go on. The answer says what becomes of it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scoop_outbox.answers import Answer
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.failures import Known, Writing, id_of
from scoop_outbox.core.plans.prune import is_pruned
from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import BEGIN, COMMIT, Checkpoint, Plan, Rows, ask, statement
from scoop_outbox.failure import CancellationRequested, Failure
from scoop_outbox.wire.control import Order


def cancel(target: uuid.UUID, reason: str | None, source: str, known: Known, hints: Hints | None) -> Plan[Answer]:
    """Ask a hierarchy, or a part of one, to give up.

    No lock of a run is waited for. The request is committed before the runs are looked up that it concerns: whichever
    begins in between finds it when it is claimed.

    Args:
        target: a run, or a message: then each run that handles it, also those that are still to come.
        reason: in words, for the failure that is raised in the end.
        source: who asks.
        known: the failures that this process knows.
        hints: told which runs have mail; None leaves it to the workers to find it.
    """
    answer = _answer((yield from read_target(target)))
    if answer is not Answer.ACCEPTED:
        return answer
    writing = Writing(known)
    failure = writing.name(Failure(CancellationRequested.__name__, reason, source).within_limits())
    *_, written, _ = yield from ask(
        BEGIN,
        *writing.statements(),
        statement("request_cancellation", target=target, failure=id_of(failure)),
        COMMIT,
    )
    writing.written()
    posted, elsewhere = yield from ask(
        statement("deliver_cancellation", target=target), statement("read_elsewhere", target=target)
    )
    pass_on(posted, hints)
    if elsewhere:
        yield from _cancel_elsewhere(target, failure, source, known, hints)
    return Answer.ACCEPTED if written else Answer.ALREADY_REQUESTED


def _cancel_elsewhere(target: uuid.UUID, reason: Failure, source: str, known: Known, hints: Hints | None) -> Plan[None]:
    """Have the homes cancel it in which sagas handle a message; one that has not started has given up then."""
    writing = Writing(known)
    gave_up = writing.name(Failure.gave_up([reason], source=source))
    ordered = statement("cancel_elsewhere", **asked_elsewhere(target, Order.CANCEL, reason), failure=id_of(gave_up))
    yield from ask(BEGIN, *writing.statements(), ordered, COMMIT)
    writing.written()
    if hints is not None:
        hints.outbox()


def asked_elsewhere(target: uuid.UUID, order: Order, reason: Failure) -> dict[str, Any]:
    """Return what the homes are asked in which sagas handle a message."""
    return {
        "run": target,
        "order": order.value,
        "reason": reason.dumps(),
        "context": None,
        "rollback_by": None,
    }


@dataclass(frozen=True, slots=True)
class Target:
    """What an id means.

    Attributes:
        runs: rows of `read_target`.
        to_come: whether more of them are to come.
        taken_in: whether it is a message that has been taken in.
        pruned: whether it was one, or a run of one, whose hierarchy has been pruned, as long as that is known.
    """

    runs: Rows
    to_come: bool = False
    taken_in: bool = False
    pruned: bool = False


def read_giving_up(checkpoints: Sequence[Checkpoint]) -> Plan[set[uuid.UUID]]:
    """Return which runs are to give up, of those whose callbacks are being executed.

    Args:
        checkpoints: what these callbacks ask for at a checkpoint.
    """
    runs = [one.run for one in checkpoints]
    deadlines = [None if one.deadline is None else one.deadline.isoformat() for one in checkpoints]
    (rows,) = yield from ask(statement("read_giving_up", runs=runs, deadlines=deadlines))
    return {row[0] for row in rows}


def read_target(target: uuid.UUID) -> Plan[Target]:
    """Return what an id means."""
    look = statement("read_to_come", target=target), statement("read_target", target=target)
    coming, runs = yield from ask(*look)
    if not runs and not coming[0][0]:
        if (yield from is_pruned(target)):
            return Target(runs, pruned=True)
        if coming[0] == (False, False):
            (in_outbox,) = yield from ask(statement("is_in_outbox", target=target))
            if in_outbox[0][0]:
                return Target(runs, to_come=True)
            coming, runs = yield from ask(*look)  # it may have left the outbox meanwhile
    to_come, taken_in = coming[0]
    return Target(runs, to_come, taken_in)


def pass_on(posted: Rows, hints: Hints | None) -> None:
    """Tell the processes whose runs have got mail."""
    if hints is not None:
        for run_id, service, saga, version, delay in posted:
            hints.mail(service, saga, version, run_id, delay)


def _answer(found: Target) -> Answer:
    """Return `ACCEPTED` when something can still be cancelled, and else why nothing can."""
    if found.to_come or any(can_give_up for _, can_give_up, *_ in found.runs):
        return Answer.ACCEPTED
    if found.pruned:
        return Answer.EXPIRED
    if not found.runs:
        return Answer.NOTHING_TO_DO if found.taken_in else Answer.UNKNOWN
    return Answer.ALREADY_ROLLED_BACK if _all_are(found.runs, RunState.ROLLED_BACK) else Answer.NOTHING_TO_DO


def _all_are(runs: Sequence[Sequence[object]], state: RunState) -> bool:
    return all(found == state.value for _, _, found, *_ in runs)
