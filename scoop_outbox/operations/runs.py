"""Runs: looking at them, ending and undoing them, and what can be done about stuck ones. Needs no application."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta

from scoop_outbox.answers import ActiveRun, Answer, RollbackAnswer
from scoop_outbox.core.plans import external, parking, requests, rollback
from scoop_outbox.core.plans.parking import ParkedRun
from scoop_outbox.core.plans.rollback import IfActive
from scoop_outbox.core.plans.runs import STUCK, ListedRun, RunSelection, list_runs
from scoop_outbox.core.plans.stuck import PAUSES, Action, Origin, carry_out
from scoop_outbox.core.run import RunState
from scoop_outbox.operations import explain, hierarchy
from scoop_outbox.operations.explanation import Cause, Explanation, Reason, Waiting
from scoop_outbox.operations.hierarchy import Hierarchy, Unstarted
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.store.standalone import OpenedDatabase

__all__ = [
    "ActiveRun",
    "Answer",
    "Cause",
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
        chosen = STUCK if stuck else frozenset(map(RunState, states))
        selection = RunSelection(chosen, service, saga, older_than, text, key)
        with self._home.blocking_driver() as driver:
            return driver.run(list_runs(selection, most=limit))

    def show(self, sought: uuid.UUID | str) -> Hierarchy:
        """Return everything below a message or a run, as it stands now.

        Args:
            sought: the id of the message or the run, or its first six hexadecimal digits or more.

        Raises:
            DefinitionError: it is no id.
            UnknownMessage: no id begins with it.
            AmbiguousId: several do; the error names them.
        """
        with self._home.blocking_driver() as driver:
            return driver.run(hierarchy.show(sought, self._home.failures))

    def explain(self, sought: uuid.UUID | str) -> Explanation:
        """Return what a run, or the hierarchy below a message, waits for.

        Runs and messages are read one after the other, while workers go on: what has just changed may be told as it was
        before. Nothing is locked.

        Args:
            sought: the id of the message or the run, or its first six hexadecimal digits or more.

        Raises:
            DefinitionError, UnknownMessage, AmbiguousId: as `show`.
        """
        with self._home.blocking_driver() as driver:
            return driver.run(explain.explain(sought, self._home.failures))

    def parked(self, service: str, limit: int = 1000) -> Sequence[ParkedRun]:
        """Return parked runs of a service, at most `limit` of them."""
        with self._home.blocking_driver() as driver:
            return driver.run(parking.list_parked(service, limit))

    def cancel(self, target: uuid.UUID, *, reason: str | None = None, source: str) -> Answer:
        """Ask a hierarchy, or a part of one, to give up: see `Scoop.cancel`."""
        with self._home.blocking_driver() as driver:
            return driver.run(requests.cancel(target, reason, source, self._home.failures, None))

    def rollback(
        self, target: uuid.UUID, *, reason: str | None = None, source: str, if_active: IfActive = "refuse"
    ) -> RollbackAnswer:
        """Undo a hierarchy that has committed, or a part of it: see `Scoop.rollback`."""
        with self._home.blocking_driver() as driver:
            return driver.run(rollback.roll_back(target, reason, source, if_active, self._home.failures, None))

    def complete(
        self, target: uuid.UUID, name: str, *, result: object = None, service: str | None = None, source: str
    ) -> Answer:
        """Say that the work of an external participant is done: see `Scoop.complete`."""
        with self._home.blocking_driver() as driver:
            word = external.completion(target, name, result, service, source, self._home.limits)
            return driver.run(external.say(word, self._home.failures, None))

    def fail(
        self,
        target: uuid.UUID,
        name: str,
        *,
        reason: str | None = None,
        error: BaseException | None = None,
        service: str | None = None,
        source: str,
    ) -> Answer:
        """Say that the work of an external participant has failed: see `Scoop.fail`."""
        with self._home.blocking_driver() as driver:
            word = external.failing(target, name, reason, error, service, source)
            return driver.run(external.say(word, self._home.failures, None))

    def retry(self, run_id: uuid.UUID, *, note: str | None = None, source: str) -> Answer:
        """Execute again what has failed, or take a parked run on again: see `Scoop.retry`."""
        return self._act(Action.RETRY, run_id, note, source)

    def skip(self, run_id: uuid.UUID, *, note: str | None = None, source: str) -> Answer:
        """Count as compensated what could not be undone: see `Scoop.skip`."""
        return self._act(Action.SKIP, run_id, note, source)

    def abandon(self, run_id: uuid.UUID, *, note: str | None = None, source: str) -> Answer:
        """Leave a run as it is, for good: see `Scoop.abandon`."""
        return self._act(Action.ABANDON, run_id, note, source)

    def _act(self, action: Action, run_id: uuid.UUID, note: str | None, source: str) -> Answer:
        answer = Answer.BUSY
        for pause in (0.0, *PAUSES):
            time.sleep(pause)
            with self._home.blocking_driver() as driver:
                answer = driver.run(carry_out(action, run_id, Origin(source, note), self._home.failures))
            if answer is not Answer.BUSY:
                break
        return answer
