"""`scope.session` adopts the savepoint of its step, and behaves as any session that has joined a transaction.

What it does is compared with a session of SQLAlchemy that has joined the transaction of an ordinary connection, and
sets savepoints of its own.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from scoop_outbox.core.transition import Raised, Returned
from scoop_outbox.store.gate import Gate
from tests.integration.lending import execute, rows
from tests.integration.test_drivers import Twin

pytestmark = pytest.mark.parametrize("colour", ["async", "blocking"])

INSERT = sa.text("insert into t values (:n)")
NO_SUCH = sa.text("select * from nowhere")

Operation = Any
"""A word, a tuple of `nested` with operations and how they end, or `loop` with a table that cannot be read."""


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Count what callbacks ask of the server."""
    asked: list[object] = []
    enter = Gate.enter

    def count(gate: Gate, sending: Iterator[Any]) -> None:
        asked.append(gate)
        enter(gate, sending)

    monkeypatch.setattr(Gate, "enter", count)
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


async def around(scope: Any) -> Any:
    """Return what SQLAlchemy has around the connection of a session, as its pool would make it."""
    return await (await scope.session.connection()).get_raw_connection()


async def test_what_listeners_have_noted_of_a_connection_is_there_in_a_session(twin: Twin, colour: str) -> None:
    # The recipe of SQLAlchemy's documentation for noting what a connection was opened by.
    outer: Any = twin.driver.outer
    (outer.sync_connection if colour == "async" else outer).connection.info["pid"] = 4711
    seen: list[dict[Any, Any]] = []

    def noted(connection: sa.Connection, *_: Any) -> None:
        seen.append(dict(connection.info))

    def body(scope: Any, _: Any) -> Any:
        yield scope.session.execute(INSERT, {"n": 1})

    sa.event.listen(sa.Engine, "before_cursor_execute", noted)
    try:
        await execute(twin, body)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", noted)
    assert [one["pid"] for one in seen] == [4711]


async def test_a_connection_of_a_session_is_as_one_of_sqlalchemys_pool(twin: Twin, colour: str) -> None:
    found: dict[str, Any] = {}

    def body(scope: Any, _: Any) -> Any:
        proxy = (yield around(scope)) if colour == "async" else scope.session.connection().connection
        found["driver"] = proxy.driver_connection is scope.connection
        found["same"] = proxy.connection is proxy.dbapi_connection
        found["states"] = proxy.is_valid, proxy.is_detached, proxy.record_info
        proxy.invalidate(soft=True)
        found["soft"] = proxy.is_valid
        yield scope.session.execute(INSERT, {"n": 1})

    assert isinstance(await execute(twin, body), Returned)
    assert rows(twin, "select n from t") == [(1,)]
    assert found == {"driver": True, "same": True, "states": (True, True, None), "soft": True}
