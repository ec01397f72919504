"""Dead letters: what could not be published or taken in, for people and their programs. Needs no application."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import psycopg

from scoop_outbox.core.plans import dead_letters as plans
from scoop_outbox.core.plans.dead_letters import Contents, DeadLetter, Origin, Replay, ReplayStatus, Selection
from scoop_outbox.store.faults import is_refusal
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.store.standalone import OpenedDatabase

__all__ = ["Contents", "DeadLetter", "DeadLetters", "Origin", "Replay", "ReplayStatus", "Selection"]

PAGE = 100
"""How many dead letters are listed at once unless more are asked for."""

MOST = 1000
"""How many can be asked for."""

_ALL = Selection()


class DeadLetters(OpenedDatabase):
    """The dead letters of one database.

    Each replay and each drop is a transaction of its own: interrupted at any moment, a letter is where it was or where
    it was to go, never in both places and never in none. Use it in a `with` block, or close it.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema is not usable.
    """

    def __init__(self, database: str, *, schema: str = DEFAULT_SCHEMA) -> None:
        """Open nothing yet."""
        super().__init__(database, schema, "dead-letters")

    def page(self, selection: Selection = _ALL, *, after: int = 0, limit: int = PAGE) -> list[DeadLetter]:
        """Return a page of dead letters in the order of their numbers.

        Args:
            selection: which ones.
            after: only those with a higher number: the last one of the page before.
            limit: how many, at most `MOST`.
        """
        with self._home.blocking_driver() as driver:
            return driver.run(plans.list_dead_letters(selection, after=after, most=min(limit, MOST)))

    def numbers(self, selection: Selection = _ALL) -> Iterator[int]:
        """Yield the numbers of all dead letters that are there now, a page at a time.

        What becomes a dead letter meanwhile is not among them, such as one that is replayed and fails again.
        """
        with self._home.blocking_driver() as driver:
            newest = driver.run(plans.newest_dead_letter())
        after = 0
        while page := self.page(selection, after=after, limit=MOST):
            for letter in page:
                if letter.id > newest:
                    return
                yield letter.id
            after = page[-1].id

    def read(self, letter: int) -> Contents | None:
        """Return a dead letter with its body and headers; None when there is none of this number."""
        with self._home.blocking_driver() as driver:
            return driver.run(plans.read_dead_letter(letter))

    def replay(self, letter: int) -> Replay:
        """Put a message back where it was given up, and forget the dead letter.

        What could not be published goes back into the outbox, with the same id, key and headers, behind what is there.
        What a service could not take in is taken in for that service; if it did so in another way meanwhile, nothing
        is started twice. What is still defective is refused, and stays. Whether its body fits the type of a saga's
        topic is not known here: if it does not, the run fails.
        """
        with self._home.blocking_driver() as driver:
            try:
                return driver.run(plans.replay(letter))
            except psycopg.Error as error:
                if not is_refusal(error):
                    raise
                return Replay(letter, ReplayStatus.REFUSED, f"it cannot be stored: {type(error).__name__}")

    def drop(self, letters: Iterable[int]) -> list[int]:
        """Delete dead letters for good.

        Returns:
            The numbers of those that were there.
        """
        with self._home.blocking_driver() as driver:
            return driver.run(plans.drop_dead_letters(list(letters)))
