"""`scope.session` adopts the savepoint of its step, and behaves as any session that has joined a transaction.

What it does is compared with a session of SQLAlchemy that has joined the transaction of an ordinary connection, and
sets savepoints of its own.
"""

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from scoop_outbox.core.transition import Raised, Returned
from scoop_outbox.store.home import Home
from scoop_outbox.store.lent import Lent
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.integration.test_drivers import Twin
from tests.integration.test_lent_connections import execute, rows

pytestmark = pytest.mark.parametrize("colour", ["async", "blocking"])

INSERT = sa.text("insert into t values (:n)")
NO_SUCH = sa.text("select * from nowhere")

Operation = Any
"""A word, a tuple of `nested` with operations and how they end, or `loop` with a table that cannot be read."""


@pytest.fixture
async def twin(colour: str, database_url: str) -> AsyncIterator[Twin]:
    with psycopg.connect(database_url) as connection:
        connection.execute("create table t (n int)")
    home = Home(database_url, DEFAULT_SCHEMA, f"test {colour}")
    twin = Twin(home, await home.connect_for_steps() if colour == "async" else home.connect_for_steps_blocking())
    yield twin
    await twin.close()
    await home.dispose()


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Count what callbacks ask of the server."""
    asked: list[object] = []
    enter = Lent._enter

    def count(lent: Lent, sending: Iterator[Any]) -> None:
        asked.append(lent)
        enter(lent, sending)

    monkeypatch.setattr(Lent, "_enter", count)
    return asked


async def test_a_session_costs_no_round_trip_of_its_own(twin: Twin, trips: list[object]) -> None:
    def body(scope: Any, _: Any) -> Any:
        for n in range(3):
            yield scope.session.execute(INSERT, {"n": n})

    assert isinstance(await execute(twin, body), Returned)
    assert len(trips) == 3
    assert len(rows(twin, "select n from t")) == 3


async def test_what_the_connection_wrote_before_the_session_began_is_not_the_sessions_to_roll_back(twin: Twin) -> None:
    def body(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("insert into t values (1)")
        yield scope.session.execute(INSERT, {"n": 2})
        yield scope.session.rollback()
        yield scope.session.execute(INSERT, {"n": 3})

    assert isinstance(await execute(twin, body), Returned)
    assert rows(twin, "select n from t order by n") == [(1,), (3,)]


async def test_a_step_that_fails_undoes_what_its_session_has_committed(twin: Twin) -> None:
    def body(scope: Any, _: Any) -> Any:
        yield scope.session.execute(INSERT, {"n": 1})
        yield scope.session.commit()
        yield scope.session.execute(INSERT, {"n": 2})
        raise ValueError("not today")

    outcome = await execute(twin, body)
    assert isinstance(outcome, Raised)
    assert outcome.open
    assert rows(twin, "select n from t") == []


async def test_the_next_step_on_the_connection_has_a_session_of_its_own(twin: Twin, trips: list[object]) -> None:
    def body(scope: Any, _: Any) -> Any:
        yield scope.session.execute(INSERT, {"n": 1})
        if len(trips) < 3:
            yield scope.session.rollback()

    for _ in range(3):
        assert isinstance(await execute(twin, body), Returned)
    assert len(rows(twin, "select n from t")) == 2
    assert len(trips) == 4


LEAVES = st.sampled_from(["session", "connection", "commit", "rollback", "refused", "close"])
OPERATIONS = st.recursive(
    st.lists(LEAVES, max_size=6),
    lambda inner: st.lists(
        st.one_of(LEAVES, st.tuples(st.just("nested"), inner, st.sampled_from(["commit", "rollback"]))), max_size=5
    ),
    max_leaves=8,
)


def does(operations: list[Operation], numbers: Iterator[int], session: Any, connection: Any) -> Iterator[Any]:
    """Do these operations on a session and the driver's connection beneath it, in the manner of either colour."""
    for operation in operations:
        match operation:
            case "session":
                yield session.execute(INSERT, {"n": next(numbers)})
            case "connection":
                yield connection.execute("insert into t values (%s)", (next(numbers),))
            case "refused":
                try:
                    yield session.execute(NO_SUCH)
                except sa.exc.DBAPIError:
                    yield session.rollback()
            case "commit" | "rollback" | "close":
                yield getattr(session, operation)()
            case ("nested", inner, how):
                nested: Any = session.begin_nested()
                yield nested
                # A session that is ended in a savepoint has ended the savepoint, too.
                yield from does([one for one in inner if one != "close"], numbers, session, connection)
                if nested.is_active:
                    yield getattr(nested, how)()


def as_any_session(url: str, operations: list[Operation]) -> list[tuple[int]]:
    """Return what is left of these operations in a session that sets savepoints of its own."""
    engine = sa.create_engine(f"postgresql+psycopg{url.removeprefix('postgresql')}", poolclass=sa.NullPool)
    with engine.connect() as connection:
        with connection.begin() as transaction:
            raw = connection.connection.driver_connection
            session = Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False)
            for _ in does(operations, itertools.count(), session, raw):
                pass
            session.commit()
            transaction.commit()
        left = connection.execute(sa.text("select n from t order by n")).fetchall()
        connection.execute(sa.text("delete from t"))
        connection.commit()
    engine.dispose()
    return [tuple(row) for row in left]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(operations=OPERATIONS)
async def test_it_behaves_as_any_session_that_has_joined_a_transaction(twin: Twin, operations: list[Operation]) -> None:
    expected = as_any_session(twin.home.url, operations)

    def body(scope: Any, _: Any) -> Any:
        yield from does(operations, itertools.count(), scope.session, scope.connection)

    outcome = await execute(twin, body)
    assert isinstance(outcome, Returned), outcome
    assert rows(twin, "select n from t order by n") == expected
    rows(twin, "delete from t")
