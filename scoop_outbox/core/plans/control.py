"""Plans of control messages: what other homes have said is taken in, each of them with the effect of having come once.

News of children is written into the rows of `child` of their parents, and orders into those of the runs that are meant,
as the statements of `news` do where parent and child live in one home. No lock of a run that executes a step is waited
for.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scoop_outbox.core.plans.ancestors import answer_question, take_in_answer
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.failures import Known, Writing, id_of, recall
from scoop_outbox.core.plans.forwarded import Lost, take_in_forwarded
from scoop_outbox.core.plans.homes import Identity, learn, read_identity
from scoop_outbox.core.plans.restored import compare
from scoop_outbox.core.plans.silence import ask_all
from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, Rows, Statement, ask, document, statement
from scoop_outbox.failure import Failure, ParentSaidSo
from scoop_outbox.wire.control import (
    Answer,
    ChildRef,
    Confirmed,
    Control,
    Kind,
    News,
    Order,
    Orders,
    Question,
    ReportedState,
    Sender,
    Subscriptions,
    body_of,
)
from scoop_outbox.wire.forwarded import Forwarded
from scoop_outbox.wire.signature import ControlKeys

UNKNOWN_RUN = "UnknownRun"
"""Type of the failure with which a home answers about a run that it does not know."""

_MOST_BYTES = 256 * 1024
"""Of reports in one message. Many a broker takes no more than a megabyte."""
_AGAIN = 5
"""How often a row is looked for that somebody else has written at that moment."""


@dataclass(slots=True)
class Noticed:
    """What somebody should know of what other homes have said.

    Attributes:
        restored: homes that say that they were restored from an older backup, and how many children are asked after.
        restored_here: who has heard more of this home than it knows, which was restored, and how many children are
            asked after.
        unknown: how many children homes say that they do not know.
        dead_letters: what was passed on and could not be taken in.
    """

    restored: list[tuple[str, int]] = field(default_factory=list)
    restored_here: list[tuple[str, int]] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    dead_letters: list[Lost] = field(default_factory=list)


def take_in_control(
    controls: Sequence[Control],
    known: Known,
    hints: Hints | None,
    *,
    keys: ControlKeys | None = None,
    begin: Sequence[Statement] = (BEGIN,),
    end: Sequence[Statement] = (COMMIT,),
) -> Plan[Noticed]:
    """Take in what other homes have said, in one transaction.

    Args:
        controls: what they have said. What this home has said itself to all is left out by the caller.
        known: the failures that this process knows.
        hints: told which runs have mail, and which messages have been handled.
        keys: messages that are passed on have to be signed with one of them, if anybody else waits for them.
        begin: begins the transaction, unless it is open.
        end: ends it.

    Returns:
        What somebody should know of it.
    """
    noticed = Noticed(unknown=_count_unknown(controls))
    writing = Writing(known)
    reports = _reports(controls, writing)
    reasons = {place: _reason(one.sender, one.content, writing) for place, one in _orders(controls)}
    posted: list[Rows] = []
    yield from ask(*begin, *writing.statements(), noted_senders([one.sender for one in controls]))
    # First, as an intake does: whoever takes in locks messages, and then what belongs to them.
    passed = [one.content for one in controls if isinstance(one.content, Forwarded)]
    noticed.dead_letters.extend((yield from take_in_forwarded(passed, keys, hints)))
    if reports:
        (told,) = yield from ask(statement("apply_news", document=document(reports)))
        posted.append(told)
    for place, control in enumerate(controls):
        if isinstance(control.content, Orders):
            posted += yield from _obey(control.sender, control.content, reasons[place], known)
        else:
            yield from _hear(control, known, noticed)
    yield from ask(*end)
    writing.written()
    if hints is not None:
        _pass_on(posted, hints)
    return noticed


def _hear(control: Control, known: Known, noticed: Noticed) -> Plan[None]:
    """Take in what another home has said or asked. News, and what was passed on, is taken in together, before."""
    match control.content:
        case Subscriptions() as listed:
            yield from learn(control.sender, listed)
            if listed.restored:
                noticed.restored.append((control.sender.name, (yield from ask_all(control.sender.id, known))))
        case Confirmed(revision, waiting):
            stored = statement("store_confirmed", home=control.sender.id, revision=revision, waiting=waiting)
            (restored,) = yield from ask(stored)
            if restored:
                noticed.restored_here.append((control.sender.name, (yield from compare(known))))
        case Question() as asked:
            yield from answer_question(asked)
        case Answer() as answered:
            yield from take_in_answer(answered)


def _count_unknown(controls: Sequence[Control]) -> Counter[str]:
    return Counter(
        one.sender.name
        for one in controls
        if isinstance(one.content, News)
        for report in one.content.reports
        if report.state is ReportedState.UNKNOWN
    )


def _orders(controls: Sequence[Control]) -> list[tuple[int, Any]]:
    return [(place, one) for place, one in enumerate(controls) if isinstance(one.content, Orders)]


def noted_senders(senders: Sequence[Sender]) -> Statement:
    """Know who has spoken, each home once, as it has said it last."""
    last = {one.id: one for one in senders}
    return statement(
        "note_peers",
        homes=list(last),
        names=[one.name for one in last.values()],
        reply_to=[one.reply_to for one in last.values()],
        said_at=[None if one.at is None else one.at.isoformat() for one in last.values()],
    )


def _reports(controls: Sequence[Control], writing: Writing) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for control in controls:
        if not isinstance(control.content, News):
            continue
        for report in control.content.reports:
            failure, obstacle = _failure(report.failure, writing), _failure(report.obstacle, writing)
            found.append(
                {
                    "message": str(report.child.message),
                    "run": str(report.child.run),
                    "home": str(control.sender.id),
                    "generation": report.child.generation,
                    "state": report.state.value,
                    "result": report.result,
                    "failure": None if failure is None else str(failure),
                    "obstacle": None if obstacle is None else str(obstacle),
                    "failed_at": None if report.failed_at is None else report.failed_at.isoformat(),
                    "abandoned": report.abandoned,
                }
            )
    return found


def _failure(said: Mapping[str, Any] | None, writing: Writing) -> uuid.UUID | None:
    """Return the id under which a failure is kept that another home has told of."""
    return None if said is None else id_of(writing.name(Failure.from_json(said)))


def _reason(sender: Sender, orders: Orders, writing: Writing) -> uuid.UUID | None:
    """Return why something is asked; nobody gives up or rolls back for nothing."""
    if orders.order not in (Order.CANCEL, Order.ROLL_BACK):
        return None
    said = orders.reason
    if said is None:
        source = f"home {sender.name}"
        said = Failure(ParentSaidSo.__name__, "no reason was given", source).to_json()
    return _failure(said, writing)


def _obey(sender: Sender, orders: Orders, reason: uuid.UUID | None, known: Known) -> Plan[list[Rows]]:
    """Carry out what another home asks of runs here, and answer for those that are not here."""
    children = list(orders.children)
    (raised,) = yield from ask(
        statement(
            "raise_generations",
            messages=[one.message for one in children],
            runs=[one.run for one in children],
            generations=[one.generation for one in children],
        )
    )
    if raised and orders.order in (Order.CANCEL, Order.ROLL_BACK):
        ended = {run for (run,) in raised}
        yield from _answer_known(sender, [one for one in children if one.run in ended], known)
    match orders.order:
        case Order.CANCEL:
            return (yield from _cancel(sender, children, reason))
        case Order.ROLL_BACK:
            return (yield from _roll_back(sender, orders, children, reason))
        case Order.WHERE:
            told = yield from _answer_known(sender, children, known)
            # The message of a child that has never been heard of may be on its way, however late it is.
            lost = [one for one in children if one.generation > 0 and one.run not in told]
            yield from _report(sender, lost, ReportedState.UNKNOWN)
        case Order.RELEASE:
            messages, runs = [one.message for one in children], [one.run for one in children]
            yield from ask(statement("release_foreign", messages=messages, runs=runs, home=sender.id))
    return []


def _roll_back(
    sender: Sender, orders: Orders, children: Sequence[ChildRef], reason: uuid.UUID | None
) -> Plan[list[Rows]]:
    (told,) = yield from ask(
        statement(
            "roll_back_foreign",
            home=sender.id,
            runs=[one.run for one in children],
            failure=reason,
            context=orders.context,
            rollback_by=orders.rollback_by,
        )
    )
    yield from _answer_unknown(sender, children)
    return [told]


def _cancel(sender: Sender, children: Sequence[ChildRef], reason: uuid.UUID | None) -> Plan[list[Rows]]:
    """Cancel what has begun; what has not never will, and is reported so. What had begun and is not known is lost."""
    buried: list[ChildRef] = []
    left = list(children)
    for _ in range(_AGAIN):
        (missing,) = yield from ask(
            statement(
                "bury_foreign",
                home=sender.id,
                messages=[one.message for one in left],
                services=[one.service for one in left],
                sagas=[one.saga for one in left],
                runs=[one.run for one in left],
                generations=[one.generation for one in left],
            )
        )
        done: dict[uuid.UUID, bool] = dict(missing)
        buried += [one for one in left if done.get(one.run)]
        # Whose row was written at this moment is seen by the next statement.
        left = [one for one in left if done.get(one.run) is False]
        if not left:
            break
    yield from _report(sender, [one for one in buried if one.generation == 0], ReportedState.CANCELLED)
    yield from _report(sender, [one for one in buried if one.generation > 0], ReportedState.UNKNOWN)
    runs = [one.run for one in children]
    (told,) = yield from ask(statement("cancel_foreign", home=sender.id, runs=runs, failure=reason))
    return [told]


def _answer_known(sender: Sender, children: Sequence[ChildRef], known: Known) -> Plan[set[uuid.UUID]]:
    """Report once more where children stand: what has been told before is as good as lost to whoever asks.

    Returns:
        Their runs.
    """
    (rows,) = yield from ask(
        statement(
            "read_foreign_children", messages=[one.message for one in children], runs=[one.run for one in children]
        )
    )
    failures = yield from recall([failure for row in rows for failure in row[8:10]], known)
    reports: list[dict[str, Any]] = []
    for message, run, service, saga, generation, cancelled, state, result, failure, obstacle, undoing in rows:
        if state is None and not cancelled:
            continue  # nobody knows any more
        report = ChildRef(message, run, service, saga, generation).to_json()
        report["state"] = ReportedState.CANCELLED if cancelled else _standing(RunState(state), undoing)
        if state == RunState.COMMITTED and result is not None:
            report["result"] = json.loads(result)
        if state in (RunState.ROLLED_BACK, RunState.ROLLBACK_FAILED):
            told = {"failure": failure, "obstacle": obstacle}
            report |= {name: failures[one].to_json() for name, one in told.items() if one is not None}
        reports.append(report)
    identity = yield from read_identity()
    for portion in _portions(reports):
        body = body_of(identity.sender, Kind.NEWS, {"children": portion})
        yield from ask(statement("send_control", topic=sender.reply_to, key=portion[0]["message"], body=body))
    return {row[1] for row in rows if row[6] is not None or row[5]}


def _portions(reports: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Divide reports so that each message is one that a broker takes, unless one of them alone is larger."""
    portion: list[dict[str, Any]] = []
    size = 0
    for report in reports:
        octets = len(json.dumps(report))
        if portion and size + octets > _MOST_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(report)
        size += octets
    if portion:
        yield portion


def _standing(state: RunState, undoing: bool) -> ReportedState:  # noqa: FBT001
    """Return what is reported of a run that stands here; one that has not ended is on its way, forward or backward."""
    if state in (RunState.COMMITTED, RunState.ROLLED_BACK, RunState.ROLLBACK_FAILED):
        return ReportedState(state.value)
    return ReportedState.ROLLING_BACK if undoing else ReportedState.STARTED


def _answer_unknown(sender: Sender, children: Sequence[ChildRef]) -> Plan[None]:
    """Tell the home that asks which of these runs are not known here, or cannot be undone any more."""
    if not children:
        return
    (rows,) = yield from ask(
        statement(
            "read_unknown_children", messages=[one.message for one in children], runs=[one.run for one in children]
        )
    )
    unknown = {run for (run,) in rows}
    yield from _report(sender, [one for one in children if one.run in unknown], ReportedState.UNKNOWN)


def _report(sender: Sender, children: Sequence[ChildRef], state: ReportedState) -> Plan[None]:
    """Report children of which there is no run here: the number of the report follows from the one in the order."""
    if not children:
        return
    identity: Identity = yield from read_identity()
    reports = [_reported(one, state, identity) for one in children]
    body = body_of(identity.sender, Kind.NEWS, {"children": reports})
    yield from ask(statement("send_control", topic=sender.reply_to, key=str(children[0].message), body=body))


def _reported(child: ChildRef, state: ReportedState, identity: Identity) -> dict[str, Any]:
    report = {**child.to_json(), "generation": child.generation + 1, "state": state.value}
    if state is ReportedState.UNKNOWN:
        text = f"home {identity.name} does not know this run: it was never there, has been pruned, or was lost"
        report["failure"] = Failure(UNKNOWN_RUN, text, f"home {identity.name}").to_json()
    return report


def _pass_on(posted: Sequence[Rows], hints: Hints) -> None:
    """Tell the processes that have something to do now."""
    for rows in posted:
        for run_id, service, saga, version, delay in rows:
            if service is None:
                hints.ended(run_id)  # it is a message that was launched from outside
            else:
                hints.mail(service, saga, version, run_id, delay)
    hints.outbox()
