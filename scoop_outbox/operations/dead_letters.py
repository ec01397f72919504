"""Dead letters: what could not be published or taken in, for people and their programs. Needs no application.

`DeadLetters` is for code without an event loop, `AsyncDeadLetters` for coroutines. What they do is in the same plans.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator

import psycopg

from scoop_outbox.core.plans import dead_letters as plans
from scoop_outbox.core.plans.control_letters import Listening
from scoop_outbox.core.plans.dead_letters import Contents, DeadLetter, Origin, Replay, ReplayStatus, Selection
from scoop_outbox.core.statement import Plan
from scoop_outbox.store.faults import is_refusal
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.store.standalone import AsyncOpenedDatabase, OpenedDatabase
from scoop_outbox.wire.signature import ControlKeys
from scoop_outbox.wire.signature import control_keys as read_keys

__all__ = ["AsyncDeadLetters", "Contents", "DeadLetter", "DeadLetters", "Origin", "Replay", "ReplayStatus", "Selection"]

PAGE = 100
"""How many dead letters are listed at once unless more are asked for."""

MOST = 1000
"""How many can be asked for."""

Keys = str | Iterable[str] | ControlKeys | None
"""Control keys: texts of the form `id:secret`, or what has been made of them."""

_ALL = Selection()


class DeadLetters(OpenedDatabase):
    """The dead letters of one database.

    Each replay and each drop is a transaction of its own: interrupted at any moment, a letter is where it was or where
    it was to go, never in both places and never in none. Use it in a `with` block, or close it.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.
        control_keys: those of the home, if it has any, as `Scoop` takes them: what other homes have said is taken in
            only if one of them has signed it.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema, or a key, is not usable.
    """

    def __init__(self, database: str, *, schema: str = DEFAULT_SCHEMA, control_keys: Keys = None) -> None:
        """Open nothing yet."""
        super().__init__(database, schema, "dead-letters")
        self._listening = Listening(self._home.failures, _keys(control_keys))

    def page(self, selection: Selection = _ALL, *, after: int = 0, limit: int = PAGE) -> list[DeadLetter]:
        """Return a page of dead letters in the order of their numbers.

        Args:
            selection: which ones.
            after: only those with a higher number: the last one of the page before.
            limit: how many, at most `MOST`.
        """
        return self._run(_page(selection, after, limit))

    def numbers(self, selection: Selection = _ALL) -> Iterator[int]:
        """Yield the numbers of all dead letters that are there now, a page at a time.

        What becomes a dead letter meanwhile is not among them, such as one that is replayed and fails again.
        """
        newest, after = self._run(plans.newest_dead_letter()), 0
        while page := self._run(_numbers(selection, after, newest)):
            yield from page
            after = page[-1]

    def read(self, letter: int) -> Contents | None:
        """Return a dead letter with its body and headers; None when there is none of this number."""
        return self._run(plans.read_dead_letter(letter))

    def replay(self, letter: int) -> Replay:
        """Put a message back where it was given up, and forget the dead letter.

        What could not be published goes back into the outbox, with the same id, key and headers, behind what is there.
        What a service could not take in is taken in for that service; if it did so in another way meanwhile, nothing
        is started twice. What is still defective is refused, and stays. Whether its body fits the type of a saga's
        topic is not known here: if it does not, the run fails. What another home has said is taken in as if it came
        now; what is still not believed, or not understood, is refused.
        """
        with self._home.blocking_driver() as driver:
            try:
                return driver.run(plans.replay(letter, self._listening))
            except psycopg.Error as error:
                return _refusal(letter, error)

    def drop(self, letters: Iterable[int]) -> list[int]:
        """Delete dead letters for good.

        Returns:
            The numbers of those that were there.
        """
        return self._run(plans.drop_dead_letters(list(letters)))


class AsyncDeadLetters(AsyncOpenedDatabase):
    """The dead letters of one database, for coroutines: what `DeadLetters` does, where everything is explained.

    Use it in an `async with` block, or close it. Any number of coroutines may share one.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.
        control_keys: those of the home, if it has any, as `Scoop` takes them: what other homes have said is taken in
            only if one of them has signed it.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema, or a key, is not usable.
    """

    def __init__(self, database: str, *, schema: str = DEFAULT_SCHEMA, control_keys: Keys = None) -> None:
        """Open nothing yet."""
        super().__init__(database, schema, "dead-letters")
        self._listening = Listening(self._home.failures, _keys(control_keys))

    async def page(self, selection: Selection = _ALL, *, after: int = 0, limit: int = PAGE) -> list[DeadLetter]:
        """Do as `DeadLetters.page`."""
        return await self._run(_page(selection, after, limit))

    async def numbers(self, selection: Selection = _ALL) -> AsyncIterator[int]:
        """Do as `DeadLetters.numbers`."""
        newest, after = await self._run(plans.newest_dead_letter()), 0
        while page := await self._run(_numbers(selection, after, newest)):
            for letter in page:
                yield letter
            after = page[-1]

    async def read(self, letter: int) -> Contents | None:
        """Do as `DeadLetters.read`."""
        return await self._run(plans.read_dead_letter(letter))

    async def replay(self, letter: int) -> Replay:
        """Do as `DeadLetters.replay`."""
        async with self._home.driver() as driver:
            try:
                return await driver.run(plans.replay(letter, self._listening))
            except psycopg.Error as error:
                return _refusal(letter, error)

    async def drop(self, letters: Iterable[int]) -> list[int]:
        """Do as `DeadLetters.drop`."""
        return await self._run(plans.drop_dead_letters(list(letters)))


def _page(selection: Selection, after: int, limit: int) -> Plan[list[DeadLetter]]:
    return plans.list_dead_letters(selection, after=after, most=min(limit, MOST))


def _numbers(selection: Selection, after: int, newest: int) -> Plan[list[int]]:
    """Return the next numbers, up to that of the dead letter that was the newest when it was begun to ask."""
    page = yield from _page(selection, after, MOST)
    return [letter.id for letter in page if letter.id <= newest]


def _refusal(letter: int, error: psycopg.Error) -> Replay:
    """Return that the database has refused a dead letter; raise what has another reason."""
    if not is_refusal(error):
        raise error
    return Replay(letter, ReplayStatus.REFUSED, f"it cannot be stored: {type(error).__name__}")


def _keys(given: Keys) -> ControlKeys | None:
    return given if given is None or isinstance(given, ControlKeys) else read_keys(given)
