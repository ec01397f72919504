"""What callbacks are lent ends with them, and is lent again only if it is as new."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from scoop_outbox import ScopeEnded, StepError
from scoop_outbox.core.statement import Batch
from scoop_outbox.core.transition import Raised, Returned
from scoop_outbox.store.pipeline import Pipeline
from tests.integration.lending import Declined, backends, execute, nothing, pid, rows
from tests.integration.test_drivers import Twin
from tests.waiting import until

pytestmark = pytest.mark.parametrize("colour", ["async", "blocking"])

TAKEN: dict[str, Callable[[Any, Any], Any]] = {
    "connection": lambda scope, taken: scope.connection,
    "session": lambda scope, taken: scope.session,
    "launch": lambda scope, taken: scope.launch("topic", None),
    "launch on the global scope": lambda scope, taken: scope.launch_on_global_scope("topic", None),
    "set_result": lambda scope, taken: scope.set_result(1),
    "context": lambda scope, taken: scope.context,
    "connection taken before": lambda scope, taken: taken["connection"].execute("insert into t values (1)"),
    "cursor taken before": lambda scope, taken: taken["cursor"].execute("insert into t values (1)"),
    "commit": lambda scope, taken: taken["connection"].commit(),
    "rollback": lambda scope, taken: taken["connection"].rollback(),
    "session taken before": lambda scope, taken: taken["session"].execute(sa.text("insert into t values (1)")),
    "bulk": lambda scope, taken: taken["session"].connection(),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("way", TAKEN)
async def test_q69_a_scope_and_what_was_taken_from_it_end_with_the_callback(twin: Twin, way: str, fails: bool) -> None:
    taken: dict[str, Any] = {}

    def body(scope: Any, _: Any) -> Any:
        taken.update(scope=scope, connection=scope.connection, session=scope.session, cursor=scope.connection.cursor())
        yield scope.session.execute(sa.text("select 1"))
        if fails:
            raise Declined("no")

    def other(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("insert into t values (2)")
        with pytest.raises(ScopeEnded, match="has ended"):
            yield TAKEN[way](taken["scope"], taken)

    assert isinstance(await execute(twin, body), Raised if fails else Returned)
    outcome = await execute(twin, other)

    assert isinstance(outcome, Returned), outcome
    assert rows(twin, "select n from t") == [(2,)]
    assert twin.driver.usable


async def test_q69_a_connection_of_sqlalchemy_that_was_taken_reaches_nobody_else(twin: Twin) -> None:
    taken: list[Any] = []

    def body(scope: Any, _: Any) -> Any:
        taken.append((yield scope.session.connection()))

    def other(scope: Any, _: Any) -> Any:
        with pytest.raises((ScopeEnded, sa.exc.SQLAlchemyError)):
            yield taken[0].execute(sa.text("insert into t values (1)"))

    await execute(twin, body)
    assert isinstance(await execute(twin, other), Returned)
    assert rows(twin, "select n from t") == []


async def test_q69_what_still_uses_the_connection_fails_the_step_and_loses_it(twin: Twin, colour: str) -> None:
    ends: list[BaseException] = []
    working: list[Any] = []
    before = pid(twin)

    async def work(scope: Any) -> None:
        try:
            await scope.connection.execute("select pg_sleep(60)")
        except BaseException as error:  # noqa: BLE001 - whatever it is told is looked at
            ends.append(error)

    def work_blocking(scope: Any) -> None:
        try:
            scope.connection.execute("select pg_sleep(60)")
        except BaseException as error:  # noqa: BLE001 - whatever it is told is looked at
            ends.append(error)

    def body(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("insert into t values (1)")
        if colour == "async":
            working.append(asyncio.create_task(work(scope)))
        else:
            working.append(threading.Thread(target=work_blocking, args=(scope,)))
            working[0].start()
        yield lambda: backends(twin, before, "select pg_sleep(60)")

    outcome = await execute(twin, body)

    assert isinstance(outcome, Raised)
    assert isinstance(outcome.error, StepError)
    assert "still in use" in str(outcome.error)
    assert not outcome.open
    await until(lambda: ends)
    assert isinstance(ends[0], ScopeEnded)
    assert pid(twin) != before
    assert backends(twin, before) == []
    assert rows(twin, "select n from t") == []
    assert isinstance(await execute(twin, nothing), Returned)


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("way", ["close", "with", "commit", "rollback", "session's connection", "chain"])
async def test_a05_a_connection_that_was_ended_is_a_failure_once_and_is_given_up(
    twin: Twin, colour: str, way: str, raises: bool
) -> None:
    before = pid(twin)

    async def enter(scope: Any) -> None:
        async with scope.connection as connection:
            await connection.execute("select 1")

    def body(scope: Any, _: Any) -> Any:
        connection = scope.connection
        if way == "with" and colour == "async":
            yield enter(scope)
        elif way == "with":
            with connection:
                connection.execute("select 1")
        elif way == "session's connection":
            yield (yield scope.session.connection()).close()
        elif way == "chain":
            yield connection.execute("commit and chain")
        else:
            yield getattr(connection, way)()
        if raises:
            raise Declined("no")

    if way == "chain" and not raises:
        with pytest.raises(psycopg.errors.InvalidSavepointSpecification):  # the plan of a run makes a failure of it
            await execute(twin, body)
    else:
        outcome = await execute(twin, body)
        assert isinstance(outcome, Raised)
        assert isinstance(outcome.error, Declined if raises else StepError)
        assert not outcome.open
    assert pid(twin) != before
    assert isinstance(await execute(twin, nothing), Returned)


async def test_a05_a_connection_that_sqlalchemy_has_invalidated_is_given_up(twin: Twin) -> None:
    before = pid(twin)

    def body(scope: Any, _: Any) -> Any:
        yield scope.session.execute(sa.text("select 1"))
        yield scope.session.invalidate()

    def later(scope: Any, _: Any) -> Any:
        yield scope.session.execute(sa.text("insert into t values (1)"))

    assert isinstance(await execute(twin, body), Raised)
    assert pid(twin) != before
    assert isinstance(await execute(twin, later), Returned)
    assert rows(twin, "select n from t") == [(1,)]


# A step begins clean --------------------------------------------------------------------------------------------

LEFT = {
    "settings": ["set search_path to nowhere", "set datestyle to 'SQL, DMY'", "set my.tenant to 'a'"],
    "a role": ["set role stranger"],
    "a session authorization": ["set session authorization stranger"],
    "a local role": ["set local role stranger"],
    "temporary tables": ["create temporary table t (left_behind text)"],
    "advisory locks": ["select pg_advisory_lock(7)"],
    "a cursor": ["declare c cursor with hold for select 1"],
    "a channel": ["listen everything"],
    "a prepared statement": ["prepare mine as select 1"],
    "a sequence": ["select nextval('numbers')"],
}
AS_NEW = """
    select current_setting('search_path'), current_setting('datestyle'), nullif(current_setting('my.tenant', true), ''),
           current_user::text, session_user::text, 't'::regclass::text,
           (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
           (select count(*) from pg_cursors where is_holdable), (select count(*) from pg_listening_channels()),
           (select count(*) from pg_prepared_statements where name not like 'scoop%')
"""


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("what", LEFT)
async def test_q70_nothing_of_a_step_is_left_on_its_connection(twin: Twin, what: str, fails: bool) -> None:
    owner = rows(twin, "select current_user::text")[0][0]
    rows(twin, "create sequence if not exists numbers")
    rows(twin, "do $$ begin create role stranger; exception when duplicate_object then end $$")
    found: list[Any] = []

    def body(scope: Any, _: Any) -> Any:
        for line in LEFT[what]:
            yield scope.connection.execute(line)
        if fails:
            raise Declined("no")

    def other(scope: Any, _: Any) -> Any:
        found.append((yield (yield scope.connection.execute(AS_NEW)).fetchone()))
        yield scope.connection.execute("savepoint s")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            yield scope.connection.execute("select lastval()")
        yield scope.connection.execute("rollback to savepoint s")

    assert isinstance(await execute(twin, body), Raised if fails else Returned)
    if not twin.driver.usable:  # it is not used again: the worker takes another one
        assert what in ("a cursor", "a channel", "a prepared statement")
        return
    outcome = await execute(twin, other)
    assert isinstance(outcome, Returned), outcome

    (fresh,) = rows(twin, AS_NEW)
    assert found == [fresh]
    assert fresh[3] == owner


KINDS: dict[str, list[Any]] = {
    "async": [psycopg.AsyncCursor, psycopg.AsyncClientCursor, psycopg.AsyncRawCursor],
    "blocking": [psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor],
}


@pytest.mark.parametrize("what", ["a cursor", "a channel", "a prepared statement"])
@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("many", [False, True])
async def test_q70_what_is_left_is_noticed_whatever_the_cursor(
    twin: Twin, colour: str, what: str, kind: int, many: bool
) -> None:
    ((statement,),) = [LEFT[what]]

    def body(scope: Any, _: Any) -> Any:
        cursor = KINDS[colour][kind](scope.connection)
        yield cursor.executemany(statement, [()]) if many else cursor.execute(statement)

    assert isinstance(await execute(twin, body), Returned)
    assert not twin.driver.usable


async def test_q70_statements_that_leave_nothing_rare_cost_no_question(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    run = Pipeline.run

    def noted(pipeline: Pipeline, batch: Batch) -> Any:
        asked.extend(one.name for one in batch)
        return run(pipeline, batch)

    monkeypatch.setattr(Pipeline, "run", noted)

    def body(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("insert into t values (1) on conflict do nothing")
        yield scope.session.execute(sa.text("select 1"))

    assert isinstance(await execute(twin, body), Returned)
    assert "release_locks" in asked
    assert not {"release_session", "reset_session_authorization"} & set(asked)


async def test_q70_what_is_set_on_the_connection_itself_is_gone(twin: Twin) -> None:
    def body(scope: Any, _: Any) -> Any:
        scope.connection.row_factory = psycopg.rows.dict_row
        scope.connection.prepare_threshold = 0
        scope.connection.adapters.register_loader("int4", psycopg.types.string.TextLoader)
        yield (yield scope.connection.execute("select 1")).fetchone()

    def other(scope: Any, _: Any) -> Any:
        assert (yield (yield scope.connection.execute("select 1")).fetchone()) == (1,)

    assert isinstance(await execute(twin, body), Returned)
    assert isinstance(await execute(twin, other), Returned)
    assert twin.driver.usable


async def test_q70_what_a_transaction_relies_on_until_its_commit_stays_that_long(twin: Twin) -> None:
    """A deferred trigger reads the tenant that the step has set."""
    rows(
        twin,
        """
        create table seen (tenant text);
        create function note() returns trigger language plpgsql as
            $$ begin insert into seen values (current_setting('my.tenant')); return null; end $$;
        create constraint trigger note after insert on t deferrable initially deferred
            for each row execute function note()
        """,
    )

    def body(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("set local my.tenant to 'a'")
        yield scope.connection.execute("insert into t values (1)")

    assert isinstance(await execute(twin, body), Returned)
    assert rows(twin, "select tenant from seen") == [("a",)]


async def test_q70_cleaning_costs_no_round_trip_and_nothing_when_the_connection_is_not_asked_for(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    run = twin.driver._pipeline.run

    def counted(batch: Batch) -> Any:
        batches.append(len(batch))
        return run(batch)

    monkeypatch.setattr(twin.driver._pipeline, "run", counted)

    def body(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("select 1")

    await execute(twin, nothing)
    await execute(twin, body)

    assert batches[:3] == [2, 2, 2]
    assert len(batches) == 4
    assert batches[3] > 2
