"""Plans of external participants: somebody outside completes their work, or says that it has failed.

What is said is a row of `request` whose target is the run, with mail for it. The first word counts. It is written
behind the lock of the run's row, which nobody holds for long, since an external participant executes nothing: so what
was accepted is not overtaken by a cancellation or a deadline. A run that is still to begin finds it when it does.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Literal

from scoop_outbox.answers import Answer
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.core.plans.failures import Known, Writing, id_of
from scoop_outbox.core.plans.prune import is_pruned
from scoop_outbox.core.plans.requests import pass_on
from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import BEGIN, COMMIT, ROLLBACK, Plan, Rows, ask, document, statement
from scoop_outbox.external import FAILED, External
from scoop_outbox.failure import Failure
from scoop_outbox.message import checked_name, dump_json
from scoop_outbox.wire.headers import storable
from scoop_outbox.wire.limits import Limits

ExternalOrName = str | External[Any]
"""An external participant, or its name."""

_LIVES = (RunState.RUNNING.value, RunState.PARKED.value)
_TO_COME = "waiting"


@dataclass(frozen=True, slots=True)
class Word:
    """What somebody says about the work of an external participant.

    Attributes:
        target: the message that it handles, or its run.
        name: its name.
        service: whose it is; None if only one service has one of that name.
        source: who says so.
        result: as JSON text, when it is completed and there is one.
        failure: why it has failed; None when it is completed.
        declared: the service that has one of that name, as the asking process has declared it; None if it has not. It
            may not have been announced yet.
    """

    target: uuid.UUID
    name: str
    service: str | None
    source: str
    result: str | None = None
    failure: Failure | None = None
    declared: str | None = None

    @property
    def kind(self) -> Literal["complete", "fail"]:
        """How the request is called."""
        return "complete" if self.failure is None else "fail"


def completion(
    target: uuid.UUID, participant: ExternalOrName, result: object, service: str | None, source: str, limits: Limits
) -> Word:
    """Return that the work of an external participant is completed.

    Raises:
        DefinitionError: that is no name.
        PayloadError: the result cannot be encoded as JSON, or is too large.
    """
    text = None if result is None else dump_json(result, "the result")
    limits.check(len(text or ""), "the result")
    return Word(target, _name_of(participant), service, source, result=text)


def failing(
    target: uuid.UUID,
    participant: ExternalOrName,
    reason: str | None,
    error: BaseException | None,
    service: str | None,
    source: str,
) -> Word:
    """Return that the work of an external participant has failed.

    Raises:
        DefinitionError: that is no name.
        ValueError: there are a reason and an error.
    """
    if error is not None and reason is not None:
        raise ValueError("say why by reason= or by error=, and not by both")
    failure = Failure(FAILED, reason, source).within_limits() if error is None else Failure.of(error, source=source)
    return Word(target, _name_of(participant), service, source, failure=failure)


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose work is meant, if that is clear, and what becomes of a word about it.

    Attributes:
        answer: what becomes of it.
        run: the run, also one that has not begun.
        to_come: whether it has not.
    """

    answer: Answer
    run: uuid.UUID | None = None
    to_come: bool = False


def say(word: Word, known: Known, hints: Hints | None) -> Plan[Answer]:
    """Complete the work of an external participant, or let it fail; answer what has become of that.

    Args:
        word: what is said.
        known: the failures that this process knows.
        hints: told which run has mail; None leaves it to the workers to find it.
    """
    found = yield from judge(word)
    if found.run is None or found.answer not in (Answer.ACCEPTED, Answer.ALREADY_REQUESTED):
        return found.answer
    run = found.run
    if found.answer is Answer.ALREADY_REQUESTED:
        yield from _post(run, hints)  # should the one before have died between saying and telling
        return found.answer
    _, locked = yield from ask(BEGIN, statement("lock_external", run=run))
    if locked and locked[0][0] not in _LIVES:
        yield from ask(ROLLBACK)
        return (yield from judge(word)).answer
    writing = Writing(known)
    failure = id_of(writing.name_any(word.failure))
    said = statement(
        "say_outside", run=run, kind=word.kind, failure=failure, result=word.result, source=storable(word.source)
    )
    *_, written, posted, _ = yield from ask(*writing.statements(), said, statement("post_outside", run=run), COMMIT)
    writing.written()
    pass_on(posted, hints)
    if not written:
        return (yield from judge(word)).answer
    if not posted:
        yield from _post(run, hints)  # it may have begun meanwhile, and not have seen what was not committed yet
    return Answer.ACCEPTED


def judge(word: Word) -> Plan[Whose]:
    """Return whose work is meant, and what becomes of a word about it that is said now."""
    meant = {"target": word.target, "name": word.name, "service": word.service}
    external = statement("read_external", **meant, declared=word.declared)
    (rows,) = yield from ask(external)
    if not rows and (yield from is_pruned(word.target)):
        return Whose(Answer.EXPIRED)
    if not rows:
        (rows,) = yield from ask(statement("read_external_in_outbox", **meant))
    if not rows:
        # It may have left the outbox meanwhile; or it is handled in another home.
        rows, elsewhere = yield from ask(external, statement("is_external_elsewhere", **meant))
        if not rows and elsewhere[0][0]:
            return Whose(Answer.ASK_ELSEWHERE)
    return _judge(rows, word.kind)


def say_joined(word: Word, run: uuid.UUID, known: Known) -> Plan[bool]:
    """Say something about a run in whatever transaction is open; answer whether nobody had before."""
    writing = Writing(known)
    failure = id_of(writing.name_any(word.failure))
    names = ("ids", "causes", "types", "messages", "sources", "documents")
    columns = [
        named for one in writing.statements() for named in zip(*(one.params[name] for name in names), strict=True)
    ]
    given = {
        "run": str(run),
        "kind": word.kind,
        "failure": None if failure is None else str(failure),
        "result": word.result,
        "source": storable(word.source),
        "failures": [
            {"id": str(one), "causes": causes, "type": kind, "message": message, "source": source, "document": text}
            for one, causes, kind, message, source, text in columns
        ],
    }
    (said,) = yield from ask(statement("say_outside_joined", document=document(given)))
    return bool(said)


def _name_of(participant: ExternalOrName) -> str:
    return participant.name if isinstance(participant, External) else checked_name("saga", participant)


def _post(run: uuid.UUID, hints: Hints | None) -> Plan[None]:
    (posted,) = yield from ask(statement("post_outside", run=run))
    pass_on(posted, hints)


def _judge(rows: Rows, kind: str) -> Whose:
    outside = [row for row in rows if row[3]]
    if not outside:
        return Whose(Answer.NOT_EXTERNAL if rows else Answer.UNKNOWN)
    if len(outside) > 1:
        return Whose(Answer.AMBIGUOUS)
    run, completed, state, _, said, cancelled = outside[0]
    lives = state in (*_LIVES, _TO_COME)
    if said is not None and (said == "fail" or completed or lives):
        other = Answer.ALREADY_COMPLETED if said == "complete" else Answer.ALREADY_FAILED
        answer = Answer.ALREADY_REQUESTED if said == kind else other
    elif state == RunState.COMMITTED.value:
        answer = Answer.NOTHING_TO_DO  # a saga of that name was executed once
    else:  # a completion that was committed too late changes nothing, either
        answer = Answer.ACCEPTED if lives and not cancelled else Answer.GAVE_UP
    return Whose(answer, run, state == _TO_COME)
