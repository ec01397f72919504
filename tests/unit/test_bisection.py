"""A batch of which the database refuses something: the rest is stored, in order and in few transactions."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoop_outbox.daemon.bisection import bisect


class Database:
    """Refuses some numbers, and is gone when it is asked for others."""

    def __init__(self, bad: Sequence[int] = (), gone: Sequence[int] = ()) -> None:
        self.bad = bad
        self.gone = gone
        self.transactions: list[list[int]] = []
        self.outcomes: list[tuple[int, bool]] = []

    async def store(self, part: Sequence[int]) -> None:
        self.transactions.append(list(part))
        if set(part) & set(self.gone):
            raise psycopg.OperationalError("gone")
        if set(part) & set(self.bad):
            raise psycopg.DataError("refused")
        self.outcomes += [(one, True) for one in part]

    async def refused(self, one: int, error: psycopg.Error) -> None:
        assert isinstance(error, psycopg.DataError)
        self.outcomes.append((one, False))

    async def bisect(self, batch: Sequence[int]) -> None:
        await bisect(batch, self.store, self.refused)


async def test_a_batch_that_is_accepted_takes_one_transaction() -> None:
    database = Database()
    await database.bisect(range(8))
    assert database.transactions == [list(range(8))]


async def test_one_that_is_refused_is_alone_in_the_end() -> None:
    database = Database(bad=[5])
    await database.bisect(range(8))
    assert database.transactions == [
        list(range(8)),
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [4, 5],
        [4],
        [5],
        [6, 7],
    ]
    assert database.outcomes == [(one, one != 5) for one in range(8)]


@pytest.mark.parametrize("bad", [[], [0]])
async def test_one_alone_is_not_tried_twice(bad: list[int]) -> None:
    database = Database(bad)
    await database.bisect([0])
    assert database.transactions == [[0]]
    assert database.outcomes == [(0, not bad)]


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
async def test_each_has_its_outcome_in_order(count: int, bad: set[int]) -> None:
    database = Database(sorted(bad))
    await database.bisect(range(count))
    assert database.outcomes == [(one, one not in bad) for one in range(count)]


async def test_an_error_that_is_no_refusal_ends_it() -> None:
    database = Database(gone=[7])
    with pytest.raises(psycopg.OperationalError):
        await database.bisect(range(8))
    assert database.transactions == [list(range(8))]


async def test_what_was_stored_before_such_an_error_remains() -> None:
    database = Database(bad=[3])

    async def store(part: Sequence[int]) -> None:
        if part[0] == 4:
            raise psycopg.OperationalError("gone meanwhile")
        await database.store(part)

    with pytest.raises(psycopg.OperationalError):
        await bisect(range(8), store, database.refused)
    assert database.outcomes == [(0, True), (1, True), (2, True), (3, False)]
