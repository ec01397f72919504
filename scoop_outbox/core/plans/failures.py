"""Failures as they are kept: each once, without its causes, which are referred to.

Runs, executions and children name a failure by its id; so do failures their causes. Within a home, a failure is told by
its id, whoever it is told to and however much lies below it. It is read when it is needed, and known from then on: it
never changes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from scoop_outbox.core.statement import Plan, Statement, ask, statement
from scoop_outbox.failure import CAUSES_LEFT_OUT, Failure, Stored
from scoop_outbox.wire.headers import storable

MOST_READ = 20_000
"""How many failures are read below those that are asked for, the outer ones first."""
BYTES_READ = 16 * 1024 * 1024
"""How much of them is read whole; behind that, types and the beginnings of messages."""
_SHOWN = 200

_REMOVED = Failure("FailureRemoved", "this failure is not kept any more", "scoop_outbox")
_MORE = Failure(CAUSES_LEFT_OUT, "more causes are left out here", "scoop_outbox")


class Known(Protocol):
    """What a process knows of the failures that a home keeps."""

    @property
    def keeper(self) -> uuid.UUID:
        """Tells failures that were read or written here from those of other homes."""

    def draw(self) -> uuid.UUID:
        """Return a new id."""

    def get(self, failure_id: uuid.UUID) -> Failure | None:
        """Return a failure if it is known."""

    def keep(self, failure: Failure) -> None:
        """Know a failure that is kept, for a while."""


def recall(ids: Iterable[uuid.UUID | None], known: Known) -> Plan[Mapping[uuid.UUID, Failure]]:
    """Return failures by id, with their causes, within the limits of failures; read those that are not known."""
    found: dict[uuid.UUID, Failure] = {}
    missing: list[uuid.UUID] = []
    for one in dict.fromkeys(ids):
        failure = None if one is None else known.get(one)
        if failure is not None and one is not None:
            found[one] = failure
        elif one is not None:
            missing.append(one)
    if missing:
        (rows,) = yield from ask(statement("read_failures", failures=missing, most=MOST_READ, bytes=BYTES_READ))
        for failure in _assembled(missing, rows, known.keeper):
            assert failure.stored is not None  # noqa: S101 - whatever is assembled is kept
            found[failure.stored.id] = failure
            known.keep(failure)
    return found


def _assembled(wanted: Sequence[uuid.UUID], rows: Sequence[Sequence[Any]], keeper: uuid.UUID) -> Iterable[Failure]:
    """Put failures together from rows of `read_failures`, without recursion: they may be thousands of levels deep."""
    alone: dict[uuid.UUID, Failure] = {}
    below: dict[uuid.UUID, list[uuid.UUID]] = {}
    for one, causes, kind, message, source, document in rows:
        short = Failure(kind, message, source) if document is None else Failure.loads(document)
        alone[one], below[one] = replace(short, stored=Stored(keeper, one)), causes
    whole: dict[uuid.UUID, Failure] = {}
    for root in wanted:
        ahead = [root] if root in alone else []
        while ahead:
            one = ahead[-1]
            unmade = [cause for cause in below[one] if cause in alone and cause not in whole]
            if one in whole or not unmade:
                ahead.pop()
                whole.setdefault(one, _with_causes(alone[one], below[one], whole))
            else:
                ahead += unmade
        failure = whole.get(root)
        yield replace(_REMOVED, stored=Stored(keeper, root)) if failure is None else failure.within_limits()


def _with_causes(alone: Failure, causes: Sequence[uuid.UUID], whole: Mapping[uuid.UUID, Failure]) -> Failure:
    found = [whole[cause] for cause in causes if cause in whole]
    return replace(alone, causes=(*alone.causes, *found, *([_MORE] if len(found) < len(causes) else [])))


class Writing:
    """Failures that a transaction writes down, each once; those that are kept here already are referred to."""

    def __init__(self, known: Known) -> None:
        """Write nothing yet."""
        self._known = known
        self._named: dict[int, tuple[Failure, Failure]] = {}
        self._new: list[Failure] = []

    def name(self, failure: Failure) -> Failure:
        """Return a failure that has an id, and whose causes have; what is new is written by `statements`."""
        if failure.stored is not None and failure.stored.keeper == self._known.keeper:
            return failure
        if id(failure) not in self._named:
            stored = Stored(self._known.keeper, self._known.draw())
            named = replace(failure, causes=tuple(map(self.name, failure.causes)), stored=stored)
            self._named[id(failure)] = failure, named
            self._new.append(named)
        return self._named[id(failure)][1]

    def name_any(self, failure: Failure | None) -> Failure | None:
        """Do as `name` if there is a failure."""
        return None if failure is None else self.name(failure)

    def written(self) -> None:
        """Know what was written, now that it is committed: who is told of it will ask."""
        for failure in self._new:
            self._known.keep(failure)

    def statements(self) -> list[Statement]:
        """Return what is to be executed before anything refers to the new failures."""
        if not self._new:
            return []
        return [
            statement(
                "record_failures",
                ids=[id_of(failure) for failure in self._new],
                causes=[f"{{{','.join(str(id_of(cause)) for cause in failure.causes)}}}" for failure in self._new],
                types=[shown(failure.type) for failure in self._new],
                messages=[None if failure.message is None else shown(failure.message) for failure in self._new],
                sources=[shown(failure.source) for failure in self._new],
                documents=[replace(failure, causes=()).dumps() for failure in self._new],
            )
        ]


def id_of(failure: Failure | None) -> uuid.UUID | None:
    """Return where a failure is kept."""
    return None if failure is None or failure.stored is None else failure.stored.id


def shown(text: str) -> str:
    """Return the beginning of a text as queries and people find it, in a form that Postgres can hold."""
    return storable(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")
