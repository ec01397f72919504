"""Ids of messages and runs, whole or shortened to how they begin."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from scoop_outbox.core.plans.inspect import find_ids
from scoop_outbox.core.statement import Plan
from scoop_outbox.errors import AmbiguousId, DefinitionError, UnknownMessage

SHORTEST = 6
"""How many hexadecimal digits an id has to be given with, at least."""

_DIGITS = 32
_NAMED = 10


@dataclass(frozen=True, slots=True)
class Found:
    """What an id belongs to.

    Attributes:
        message_id: the message; of a run, the one that it handles.
        run_id: the run; None when the id is a message's.
    """

    message_id: uuid.UUID
    run_id: uuid.UUID | None


def find(sought: uuid.UUID | str) -> Plan[Found]:
    """Return the message or the run whose id is given, or begins with what is given.

    Runs of a message share half of their digits with it: what fits a message and its own runs is the message.

    Raises:
        DefinitionError: it is no id.
        UnknownMessage: there is none.
        AmbiguousId: there are several.
    """
    rows = yield from find_ids(*_bounds(_digits(sought)), _NAMED + 1)
    messages = [one for kind, one, _ in rows if kind == "message"]
    runs = [(one, message) for kind, one, message in rows if kind == "run"]
    if len(messages) == 1 and all(message == messages[0] for _, message in runs):
        return Found(messages[0], None)
    if not messages and len(runs) == 1:
        run_id, message_id = runs[0]
        return Found(message_id, run_id)
    if rows:
        others = [("run", one) for one, message in runs if message not in messages]
        raise AmbiguousId(_ambiguous(sought, [*(("message", one) for one in messages), *others]))
    raise UnknownMessage(f"no message and no run of this database has an id that begins with {sought}")


def find_target(sought: uuid.UUID | str) -> Plan[uuid.UUID]:
    """Return the id of the message or the run that something is to be done about.

    A whole id is not looked up: who acts on it learns whether there is such a message or run. Of a shortened one
    nothing is guessed: to cancel a message is more than to cancel one of its runs, so what fits both is refused.

    Raises:
        DefinitionError, UnknownMessage, AmbiguousId: as `find`.
    """
    return (yield from _find_only(sought, ("message", "run")))


def find_run(sought: uuid.UUID | str) -> Plan[uuid.UUID]:
    """Return the id of the run that something is to be done about; as `find_target`, but messages do not count.

    Raises:
        DefinitionError: it is no id.
        UnknownMessage: there is no such run.
        AmbiguousId: there are several.
    """
    return (yield from _find_only(sought, ("run",)))


def _find_only(sought: uuid.UUID | str, kinds: Sequence[str]) -> Plan[uuid.UUID]:
    digits = _digits(sought)
    if len(digits) == _DIGITS:
        return uuid.UUID(digits)
    rows = yield from find_ids(*_bounds(digits), _NAMED + 1)
    found: list[tuple[str, uuid.UUID]] = [(kind, one) for kind, one, _ in rows if kind in kinds]
    if not found:
        raise UnknownMessage(f"no {' and no '.join(kinds)} of this database has an id that begins with {sought}")
    if len(found) > 1:
        raise AmbiguousId(_ambiguous(sought, sorted(found)))
    return found[0][1]


def _bounds(digits: str) -> tuple[uuid.UUID, uuid.UUID]:
    return uuid.UUID(digits.ljust(_DIGITS, "0")), uuid.UUID(digits.ljust(_DIGITS, "f"))


def _digits(sought: uuid.UUID | str) -> str:
    digits = str(sought).replace("-", "").lower()
    if re.fullmatch(rf"[0-9a-f]{{{SHORTEST},{_DIGITS}}}", digits) is None:
        raise DefinitionError(
            f"{str(sought)[: 2 * _DIGITS]!r} is no id of a message or run: pass all of it, or the first {SHORTEST} "
            "hexadecimal digits at least"
        )
    return digits


def _ambiguous(sought: uuid.UUID | str, ids: Sequence[tuple[str, uuid.UUID]]) -> str:
    named = ", ".join(f"{kind} {one}" for kind, one in ids[:_NAMED])
    more = ", and more" if len(ids) > _NAMED else ""
    return f"several ids begin with {sought}, pass more of it: {named}{more}"
