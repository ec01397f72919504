"""Runs: looking at them, ending and undoing them, and what can be done about stuck ones. Needs no application.

`Runs` is for code without an event loop, `AsyncRuns` for coroutines. What they do is in the same plans.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta

from scoop_outbox.answers import ActiveRun, Answer, RollbackAnswer
from scoop_outbox.core.plans import requests, rollback
from scoop_outbox.core.plans.failures import Known
from scoop_outbox.core.plans.parking import ParkedRun, list_parked
from scoop_outbox.core.plans.rollback import IfActive
from scoop_outbox.core.plans.runs import STUCK, ListedRun, RunSelection, list_runs
from scoop_outbox.core.plans.stuck import PAUSES, Action, Origin, carry_out
from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import Plan
from scoop_outbox.operations import explain, external, hierarchy
from scoop_outbox.operations.explanation import Cause, Explanation, Reason, Waiting
from scoop_outbox.operations.hierarchy import Executing, Hierarchy, Unstarted
from scoop_outbox.operations.prefixes import find_run, find_target
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.store.standalone import AsyncOpenedDatabase, OpenedDatabase

__all__ = [
    "ActiveRun",
    "Answer",
    "AsyncRuns",
    "Cause",
    "Executing",
    "Explanation",
    "Hierarchy",
    "ListedRun",
    "ParkedRun",
    "Reason",
    "RollbackAnswer",
    "Runs",
    "Unstarted",
    "Waiting",
]

LIMIT = 100
"""How many runs are listed unless more are asked for."""


class Runs(OpenedDatabase):
    """The runs of one database. Use it in a `with` block, or close it.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema is not usable.
    """

    def __init__(self, database: str, *, schema: str = DEFAULT_SCHEMA) -> None:
        """Open nothing yet."""
        super().__init__(database, schema, "runs")

    def list(
        self,
        *,
        states: Iterable[RunState | str] = (),
        service: str | None = None,
        saga: str | None = None,
        older_than: timedelta | None = None,
        stuck: bool = False,
        text: str | None = None,
        key: str | None = None,
        limit: int = LIMIT,
    ) -> Sequence[ListedRun]:
        """Return runs that fit all that is given, the newest first; with `older_than` the oldest first.

        What has not ended, is parked or could not be rolled back is found at once, however many runs have ended. For
        other states all runs are looked at, and all messages if there is a key.

        Args:
            states: in which states. Unless given, any with `key` or `text`, otherwise all but `committed` and
                `rolled_back`. Abandoned runs are listed as `rollback_failed` if `parked` ones are not asked for.
            service: only those of this service.
            saga: only those of sagas of this name.
            older_than: only those whose message was taken in at least so long ago.
            stuck: only those that need a person: `parked` or `rollback_failed`, and not abandoned.
            text: only those that have this in the type or the first 200 characters of the message of their failure, or
                in why they are parked; upper and lower case are the same.
            key: only those of messages with this key; a binary one as it is shown.
            limit: how many at most.

        Raises:
            ValueError: there is no such state.
        """
        selection = _selection(states, service, saga, older_than, text, key, stuck=stuck)
        return self._run(list_runs(selection, most=limit))

    def show(self, sought: uuid.UUID | str) -> Hierarchy:
        """Return everything below a message or a run, as it stands now.

        Args:
            sought: the id of the message or the run, or its first six hexadecimal digits or more.

        Raises:
            DefinitionError: it is no id.
            UnknownMessage: no id begins with it.
            AmbiguousId: several do; the error names them.
        """
        return self._run(hierarchy.show(sought, self._home.failures))

    def explain(self, sought: uuid.UUID | str) -> Explanation:
        """Return what a run, or the hierarchy below a message, waits for.

        Runs and messages are read one after the other, while workers go on: what has just changed may be told as it was
        before. Nothing is locked.

        Args:
            sought: the id of the message or the run, or its first six hexadecimal digits or more.

        Raises:
            DefinitionError, UnknownMessage, AmbiguousId: as `show`.
        """
        return self._run(explain.explain(sought, self._home.failures))

    def parked(self, service: str, limit: int = 1000) -> Sequence[ParkedRun]:
        """Return parked runs of a service, at most `limit` of them."""
        return self._run(list_parked(service, limit))

    def find_target(self, sought: uuid.UUID | str) -> uuid.UUID:
        """Return the id of the message or the run that is meant; a whole id is not looked up.

        What takes a `target` does so: `cancel`, `rollback`, `complete` and `fail`.

        Raises:
            DefinitionError: it is no id.
            UnknownMessage: no id begins with it.
            AmbiguousId: several do, if only that of a message and those of its runs; the error names them.
        """
        return self._run(find_target(sought))

    def find_run(self, sought: uuid.UUID | str) -> uuid.UUID:
        """Return the id of the run that `retry`, `skip` and `abandon` mean; a whole id is not looked up.

        Raises:
            DefinitionError: it is no id.
            UnknownMessage: no id of a run begins with it.
            AmbiguousId: several do; the error names them.
        """
        return self._run(find_run(sought))

    def cancel(self, target: uuid.UUID | str, *, reason: str | None = None, source: str) -> Answer:
        """Ask a hierarchy, or a part of one, to give up: see `Scoop.cancel`.

        Args:
            target: the id of a message or a run, or how it begins, as `find_target` takes it.
            reason: in words; part of the failure.
            source: who asks.

        Raises:
            DefinitionError, UnknownMessage, AmbiguousId: as `find_target`. Nothing has been asked then.
        """
        return self._run(_cancel(target, reason, source, self._home.failures))

    def rollback(
        self, target: uuid.UUID | str, *, reason: str | None = None, source: str, if_active: IfActive = "refuse"
    ) -> RollbackAnswer:
        """Undo a hierarchy that has committed, or a part of it: see `Scoop.rollback`.

        Args:
            target: as for `cancel`.
            reason: in words; part of the failure.
            source: who asks.
            if_active: what becomes of the request when a run at, above or below it has not ended.

        Raises:
            DefinitionError, UnknownMessage, AmbiguousId: as `find_target`. Nothing has been asked then.
        """
        return self._run(_roll_back(target, reason, source, if_active, self._home.failures))

    def complete(
        self, target: uuid.UUID | str, name: str, *, result: object = None, service: str | None = None, source: str
    ) -> Answer:
        """Say that the work of an external participant is done: see `Scoop.complete`.

        Args:
            target: as for `cancel`; a message that is still on its way by its whole id.
            name: what the participant was declared as.
            result: a JSON value that the work leaves; None leaves nothing.
            service: the service that declares it, if more than one has one of that name.
            source: who did the work.

        Raises:
            DefinitionError, UnknownMessage, AmbiguousId: as `find_target`, or that is no name.
            PayloadError: the result cannot be encoded as JSON, or is too large.
        """
        return self._run(external.complete(target, name, result, service, source, self._home))

    def fail(
        self,
        target: uuid.UUID | str,
        name: str,
        *,
        reason: str | None = None,
        error: BaseException | None = None,
        service: str | None = None,
        source: str,
    ) -> Answer:
        """Say that the work of an external participant has failed: see `Scoop.fail`.

        Args:
            target: as for `complete`.
            name: as for `complete`.
            reason: in words; part of the failure.
            error: instead of that, an exception.
            service: as for `complete`.
            source: who says so; part of the failure.

        Raises:
            DefinitionError, UnknownMessage, AmbiguousId: as `complete`.
            ValueError: there are a reason and an error.
        """
        return self._run(external.fail(target, name, reason, error, service, source, self._home))

    def retry(self, run_id: uuid.UUID | str, *, note: str | None = None, source: str) -> Answer:
        """Execute again what has failed, or take a parked run on again: see `Scoop.retry`.

        Args:
            run_id: the run, or how its id begins, as `find_run` takes it.
            note: why, in words; kept with who, and when.
            source: who asks.

        Raises:
            DefinitionError, UnknownMessage, AmbiguousId: as `find_run`. Nothing has been done then.
        """
        return self._act(Action.RETRY, run_id, Origin(source, note))

    def skip(self, run_id: uuid.UUID | str, *, note: str | None = None, source: str) -> Answer:
        """Count as compensated what could not be undone: see `Scoop.skip`. Arguments and errors: those of `retry`."""
        return self._act(Action.SKIP, run_id, Origin(source, note))

    def abandon(self, run_id: uuid.UUID | str, *, note: str | None = None, source: str) -> Answer:
        """Leave a run as it is, for good: see `Scoop.abandon`. Arguments and errors: those of `retry`."""
        return self._act(Action.ABANDON, run_id, Origin(source, note))

    def _act(self, action: Action, run_id: uuid.UUID | str, origin: Origin) -> Answer:
        for pause in PAUSES:
            answer = self._run(_carry_out(action, run_id, origin, self._home.failures))
            if answer is not Answer.BUSY:
                return answer
            time.sleep(pause)
        return self._run(_carry_out(action, run_id, origin, self._home.failures))


class AsyncRuns(AsyncOpenedDatabase):
    """The runs of one database, for coroutines: what `Runs` does, where arguments, answers and errors are explained.

    Use it in an `async with` block, or close it. Any number of coroutines may share one.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema is not usable.
    """

    def __init__(self, database: str, *, schema: str = DEFAULT_SCHEMA) -> None:
        """Open nothing yet."""
        super().__init__(database, schema, "runs")

    async def list(
        self,
        *,
        states: Iterable[RunState | str] = (),
        service: str | None = None,
        saga: str | None = None,
        older_than: timedelta | None = None,
        stuck: bool = False,
        text: str | None = None,
        key: str | None = None,
        limit: int = LIMIT,
    ) -> Sequence[ListedRun]:
        """Do as `Runs.list`."""
        selection = _selection(states, service, saga, older_than, text, key, stuck=stuck)
        return await self._run(list_runs(selection, most=limit))

    async def show(self, sought: uuid.UUID | str) -> Hierarchy:
        """Do as `Runs.show`."""
        return await self._run(hierarchy.show(sought, self._home.failures))

    async def explain(self, sought: uuid.UUID | str) -> Explanation:
        """Do as `Runs.explain`."""
        return await self._run(explain.explain(sought, self._home.failures))

    async def parked(self, service: str, limit: int = 1000) -> Sequence[ParkedRun]:
        """Do as `Runs.parked`."""
        return await self._run(list_parked(service, limit))

    async def find_target(self, sought: uuid.UUID | str) -> uuid.UUID:
        """Do as `Runs.find_target`."""
        return await self._run(find_target(sought))

    async def find_run(self, sought: uuid.UUID | str) -> uuid.UUID:
        """Do as `Runs.find_run`."""
        return await self._run(find_run(sought))

    async def cancel(self, target: uuid.UUID | str, *, reason: str | None = None, source: str) -> Answer:
        """Do as `Runs.cancel`."""
        return await self._run(_cancel(target, reason, source, self._home.failures))

    async def rollback(
        self, target: uuid.UUID | str, *, reason: str | None = None, source: str, if_active: IfActive = "refuse"
    ) -> RollbackAnswer:
        """Do as `Runs.rollback`."""
        return await self._run(_roll_back(target, reason, source, if_active, self._home.failures))

    async def complete(
        self, target: uuid.UUID | str, name: str, *, result: object = None, service: str | None = None, source: str
    ) -> Answer:
        """Do as `Runs.complete`."""
        return await self._run(external.complete(target, name, result, service, source, self._home))

    async def fail(
        self,
        target: uuid.UUID | str,
        name: str,
        *,
        reason: str | None = None,
        error: BaseException | None = None,
        service: str | None = None,
        source: str,
    ) -> Answer:
        """Do as `Runs.fail`."""
        return await self._run(external.fail(target, name, reason, error, service, source, self._home))

    async def retry(self, run_id: uuid.UUID | str, *, note: str | None = None, source: str) -> Answer:
        """Do as `Runs.retry`."""
        return await self._act(Action.RETRY, run_id, Origin(source, note))

    async def skip(self, run_id: uuid.UUID | str, *, note: str | None = None, source: str) -> Answer:
        """Do as `Runs.skip`."""
        return await self._act(Action.SKIP, run_id, Origin(source, note))

    async def abandon(self, run_id: uuid.UUID | str, *, note: str | None = None, source: str) -> Answer:
        """Do as `Runs.abandon`."""
        return await self._act(Action.ABANDON, run_id, Origin(source, note))

    async def _act(self, action: Action, run_id: uuid.UUID | str, origin: Origin) -> Answer:
        for pause in PAUSES:
            answer = await self._run(_carry_out(action, run_id, origin, self._home.failures))
            if answer is not Answer.BUSY:
                return answer
            await asyncio.sleep(pause)
        return await self._run(_carry_out(action, run_id, origin, self._home.failures))


def _selection(
    states: Iterable[RunState | str],
    service: str | None,
    saga: str | None,
    older_than: timedelta | None,
    text: str | None,
    key: str | None,
    *,
    stuck: bool,
) -> RunSelection:
    chosen = STUCK if stuck else frozenset(map(RunState, states))
    return RunSelection(chosen, service, saga, older_than, text, key)


def _cancel(target: uuid.UUID | str, reason: str | None, source: str, known: Known) -> Plan[Answer]:
    found = yield from find_target(target)
    return (yield from requests.cancel(found, reason, source, known, None))


def _roll_back(
    target: uuid.UUID | str, reason: str | None, source: str, if_active: IfActive, known: Known
) -> Plan[RollbackAnswer]:
    found = yield from find_target(target)
    return (yield from rollback.roll_back(found, reason, source, if_active, known, None))


def _carry_out(action: Action, run_id: uuid.UUID | str, origin: Origin, known: Known) -> Plan[Answer]:
    found = yield from find_run(run_id)
    return (yield from carry_out(action, found, origin, known))
