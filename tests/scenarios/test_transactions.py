"""A step is one transaction: what it writes, what it launches and that it has run are kept together or not at all."""

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from scoop_outbox import DistributedError, RunState, StepError
from tests.scenarios.shop import LONG, Body, Shop, events, launches, raises


class Base(DeclarativeBase):
    pass


class Sold(Base):
    __tablename__ = "sold"

    name: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture(autouse=True)
def _table(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("create table sold (name text primary key)")


@pytest.fixture
def sold(database_url: str) -> Any:
    """Reads what the business has written, from outside."""

    def read() -> list[str]:
        with psycopg.connect(database_url, autocommit=True) as connection:
            return [name for (name,) in connection.execute("select name from sold order by name")]

    return read


INSERT = "insert into sold values (%s)"


def with_core(scope: Any, name: str) -> Iterator[Any]:
    yield scope.session.execute(sa.insert(Sold).values(name=name))


def with_orm(scope: Any, name: str) -> Iterator[Any]:
    scope.session.add(Sold(name=name))  # flushed by the engine
    yield None


def with_psycopg(scope: Any, name: str) -> Iterator[Any]:
    yield scope.connection.execute(INSERT, (name,))


def with_all(scope: Any, name: str) -> Iterator[Any]:
    yield from with_core(scope, name)
    yield from with_orm(scope, f"{name}, orm")
    yield from with_psycopg(scope, f"{name}, psycopg")


WRITERS = {"core": with_core, "orm": with_orm, "psycopg": with_psycopg}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Any:
    return WRITERS[request.param]


async def test_tx_01_what_a_step_writes_commits_with_it(shop: Shop, write: Any, sold: Any) -> None:
    seen: list[list[str]] = []

    def body(scope: Any, _: Any) -> Iterator[Any]:
        yield from write(scope, "book")
        scope.launch("C", None)
        seen.append(sold())

    shop.saga("root", "R", body, None)
    shop.saga("child", "C", lambda *_: seen.append(sold()))

    handle = await shop.run("R")

    assert seen == [[], ["book"]]
    assert sold() == ["book"]
    assert await shop.states(handle) == {"root": RunState.COMMITTED, "child": RunState.COMMITTED}


async def test_tx_02_what_a_failing_step_writes_is_undone(shop: Shop, write: Any, sold: Any) -> None:
    def body(scope: Any, _: Any) -> Iterator[Any]:
        yield from write(scope, "book")
        scope.launch("C", None)
        raise RuntimeError("boom")

    shop.saga("root", "R", body)
    shop.saga("child", "C", None)

    handle, error = await shop.fail("R")

    assert sold() == []
    assert await shop.states(handle) == {"root": RunState.ROLLED_BACK}
    assert shop.journal == ["root-0"]
    assert "boom" in str(error)


async def test_tx_02_earlier_steps_keep_what_they_wrote(shop: Shop, sold: Any) -> None:
    """Compensating is the user's business: a rollback of the saga undoes no committed transaction."""

    def fail(scope: Any, _: Any) -> Iterator[Any]:
        yield from with_all(scope, "pen")
        raise RuntimeError("boom")

    saga = shop.saga("root", "R", lambda scope, _: with_all(scope, "book"), fail)
    assert saga.steps[0].compensation is not None
    handle, _ = await shop.fail("R")

    assert sold() == ["book", "book, orm", "book, psycopg"]
    assert shop.journal == ["root-0", "root-1", "root-rb0"]
    assert (await shop.only(handle, "root")).steps[1].state == "failed"


async def test_tx_02_a_compensation_is_a_transaction_too(shop: Shop, sold: Any) -> None:
    def undo(scope: Any, *_: Any) -> Iterator[Any]:
        yield scope.session.execute(sa.delete(Sold).where(Sold.name == "book"))
        yield from with_orm(scope, "undone")

    saga = shop.app.saga("root", on="R")
    shop.step(saga, "0", lambda scope, _: with_core(scope, "book"), compensate=undo)
    shop.step(saga, "1", raises())

    await shop.fail("R")

    assert sold() == ["undone"]


async def test_tx_03_rb_08_runs_of_two_messages_share_no_transaction(shop: Shop, database_url: str, sold: Any) -> None:
    launched: dict[str, uuid.UUID] = {}

    def body(scope: Any, message: Any) -> Iterator[Any]:
        launched[message.payload] = scope.launch_on_global_scope("G", message.payload)
        yield from with_psycopg(scope, message.payload)
        if message.payload == "first":
            raise RuntimeError("boom")

    seen: list[Any] = []
    shop.saga("root", "R", body)
    shop.saga("elsewhere", "G", lambda _, message: seen.append(message.payload))

    with psycopg.connect(database_url) as connection:
        first = shop.app.launch_sync("R", "first", session=connection)
        second = shop.app.launch_sync("R", "second", session=connection)
        connection.commit()
    async with shop.running():
        with pytest.raises(DistributedError, match="boom"):
            await first.wait(LONG)
        await second.wait(LONG)
        await shop.app.handle(launched["second"]).wait(LONG)

    assert seen == ["second"]
    assert sold() == ["second"]
    assert await shop.states(first) == {"root": RunState.ROLLED_BACK}
    assert await shop.states(second) == {"root": RunState.COMMITTED}


async def test_tx_04_a_failure_is_recorded_although_the_step_is_undone(shop: Shop) -> None:
    shop.saga("root", "R", launches("nobody"), raises("boom"))

    handle, _ = await shop.fail("R")

    assert await events(shop.app, handle) == [
        "root 0 step compensated",
        "root 1 step failed",
        "root 0 compensation committed",
    ]
    run = await shop.only(handle, "root")
    assert run.failure is not None
    assert run.failure.message == "boom"
    assert [step.failure == run.failure for step in run.steps] == [False, True, False]


@pytest.mark.parametrize("ending", ["commit", "rollback"])
async def test_tx_06_ending_the_session_ends_only_its_own_savepoint(shop: Shop, ending: str, sold: Any) -> None:
    seen: list[list[str]] = []

    def body(scope: Any, _: Any) -> Iterator[Any]:
        yield from with_psycopg(scope, "before")
        yield from with_orm(scope, "inside")
        yield scope.session.flush()
        yield getattr(scope.session, ending)()
        seen.append(sold())  # nothing is visible outside, whatever the session was told
        yield from with_core(scope, "after")

    shop.saga("root", "R", body)

    await shop.run("R")

    assert seen == [[]]
    assert sold() == ["after", "before", *(["inside"] if ending == "commit" else [])]


async def test_tx_06_what_a_session_committed_is_undone_with_a_failing_step(shop: Shop, sold: Any) -> None:
    def body(scope: Any, _: Any) -> Iterator[Any]:
        yield from with_orm(scope, "book")
        yield scope.session.commit()
        raise RuntimeError("boom")

    shop.saga("root", "R", body)

    await shop.fail("R")

    assert sold() == []


async def test_tx_06_a_savepoint_of_the_session_contains_a_database_error(shop: Shop, sold: Any) -> None:
    async def asynchronous(scope: Any, _: Any) -> None:
        await scope.connection.execute(INSERT, ("book",))
        with pytest.raises(sa.exc.IntegrityError):
            async with scope.session.begin_nested():
                await scope.session.execute(sa.insert(Sold).values(name="book"))
        await scope.session.execute(sa.insert(Sold).values(name="pen"))

    def blocking(scope: Any, _: Any) -> None:
        scope.connection.execute(INSERT, ("book",))
        with pytest.raises(sa.exc.IntegrityError), scope.session.begin_nested():
            scope.session.execute(sa.insert(Sold).values(name="book"))
        scope.session.execute(sa.insert(Sold).values(name="pen"))

    add(shop, asynchronous, blocking)

    await shop.run("R")

    assert sold() == ["book", "pen"]


async def test_tx_06_a_savepoint_of_psycopg_contains_a_database_error(shop: Shop, sold: Any) -> None:
    async def asynchronous(scope: Any, _: Any) -> None:
        connection = scope.connection
        async with connection.transaction():
            await connection.execute(INSERT, ("book",))
        try:
            async with connection.transaction():
                await connection.execute(INSERT, ("pen",))
                await connection.execute(INSERT, ("book",))
        except psycopg.errors.UniqueViolation:
            shop.journal("caught")
        assert sold() == []

    def blocking(scope: Any, _: Any) -> None:
        connection = scope.connection
        with connection.transaction():
            connection.execute(INSERT, ("book",))
        try:
            with connection.transaction():
                connection.execute(INSERT, ("pen",))
                connection.execute(INSERT, ("book",))
        except psycopg.errors.UniqueViolation:
            shop.journal("caught")
        assert sold() == []

    add(shop, asynchronous, blocking)

    await shop.run("R")

    assert shop.journal == ["caught"]
    assert sold() == ["book"]


@pytest.mark.parametrize(
    "ending", ["commit", "rollback", "sql commit", "sql rollback", "sql commit and chain", "sql rollback and chain"]
)
async def test_tx_06_a_step_that_ends_its_own_transaction_fails_and_is_told(shop: Shop, ending: str, sold: Any) -> None:
    def body(scope: Any, _: Any) -> Iterator[Any]:
        scope.launch("C", None)
        yield from with_psycopg(scope, "book")
        if ending.startswith("sql "):
            yield scope.connection.execute(ending.removeprefix("sql "))
        else:
            yield getattr(scope.connection, ending)()

    saga = shop.app.saga("root", on="R")
    shop.step(saga, "first")
    shop.step(saga, "ender", body)
    shop.saga("child", "C", None)

    handle, error = await shop.fail("R")

    # What the user has committed is out of the engine's hands; that the step launched something is not.
    assert sold() == (["book"] if "commit" in ending else [])
    assert shop.journal == ["root-first", "root-ender", "root-rbfirst"]
    assert await shop.states(handle) == {"root": RunState.ROLLED_BACK}
    assert error.type.endswith(StepError.__qualname__)
    assert "step 'ender' of saga 'root' ended its own transaction" in str(error)
    assert "never commit or roll back scope.connection" in str(error)


async def test_tx_06_a_swallowed_database_error_fails_the_step(shop: Shop, write: Any, sold: Any) -> None:
    def body(scope: Any, _: Any) -> Iterator[Any]:
        yield from with_psycopg(scope, "book")
        try:
            yield from write(scope, "book")
            if write is with_orm:
                yield scope.session.flush()
        except (psycopg.Error, sa.exc.SQLAlchemyError):
            shop.journal("caught")

    shop.saga("root", "R", None, body)

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "caught", "root-rb0"]
    assert sold() == []
    assert await shop.states(handle) == {"root": RunState.ROLLED_BACK}
    assert error.type.endswith(StepError.__qualname__)
    assert "step '1' of saga 'root' went on after a database error" in str(error)
    assert "savepoint" in str(error)


async def test_tx_06_what_the_session_cannot_flush_at_the_end_fails_the_step(shop: Shop, sold: Any) -> None:
    def body(scope: Any, _: Any) -> Iterator[Any]:
        yield from with_psycopg(scope, "book")
        yield from with_orm(scope, "book")

    shop.saga("root", "R", None, body)

    handle, error = await shop.fail("R")

    assert sold() == []
    assert shop.journal == ["root-0", "root-1", "root-rb0"]
    assert "IntegrityError" in error.type
    assert len((await shop.only(handle, "root")).steps) == 3


async def test_tx_06_a_constraint_that_fails_at_commit_fails_the_saga_once(shop: Shop, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "create table line (sold text references sold deferrable initially deferred)",
        )

    def body(scope: Any, _: Any) -> Iterator[Any]:
        scope.launch("C", None)
        scope.context["tried"] = True
        yield scope.connection.execute("insert into line values ('nothing like it')")

    contexts: list[bool] = []
    saga = shop.app.saga("root", on="R")
    shop.step(saga, "0", compensate=lambda scope, *_: contexts.append(scope.context["tried"]))
    shop.step(saga, "1", body)
    shop.saga("child", "C", None)

    handle, error = await shop.fail("R")

    assert shop.journal == ["root-0", "root-1", "root-rb0"]
    assert contexts == [True]
    assert "ForeignKeyViolation" in error.type
    assert await events(shop.app, handle) == [
        "root 0 step compensated",
        "root 1 step failed",
        "root 0 compensation committed",
    ]
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select * from line").fetchall() == []


async def test_tx_06_the_next_run_finds_a_clean_connection(shop: Shop, sold: Any) -> None:
    """With one slot, runs use one connection after the other: nothing of a failed one may stay in it."""

    def body(scope: Any, message: Any) -> Iterator[Any]:
        yield from with_all(scope, message.payload)
        match message.payload:
            case "raises":
                raise RuntimeError("boom")
            case "commits":
                yield scope.connection.commit()
            case "commits in a savepoint":
                yield scope.session.begin_nested()
                yield scope.session.begin_nested()
                yield scope.connection.commit()
            case "breaks":
                with pytest.raises(psycopg.Error):
                    yield scope.connection.execute("select 1 / 0")
            case "leaves a session":
                scope.session.add(Sold(name=message.payload))
                raise RuntimeError("boom")

    kinds = ["raises", "commits", "commits in a savepoint", "breaks", "leaves a session"]
    shop.saga("root", "R", body)
    async with shop.running(slots=1):
        for number, kind in enumerate(kinds):
            bad = await shop.app.launch("R", kind)
            with pytest.raises(DistributedError):
                await bad.wait(LONG)
            await (await shop.app.launch("R", f"good {number}")).wait(LONG)

    goods = [name for name in sold() if name.startswith("good")]
    assert len(goods) == 5 * 3


async def test_tx_06_savepoints_and_repeated_statements_leave_the_engine_alone(shop: Shop, sold: Any) -> None:
    """psycopg prepares what is executed often, and deallocates everything prepared after a rollback to a savepoint."""

    def body(scope: Any, _: Any) -> Iterator[Any]:
        for number in range(10):
            yield from with_psycopg(scope, f"{scope.step}, {number}")
        yield scope.connection.execute("savepoint mine")
        yield from with_psycopg(scope, "undone")
        yield scope.connection.execute("rollback to savepoint mine")
        yield from with_psycopg(scope, f"{scope.step}, last")

    shop.saga("root", "R", body, body, body)

    async with shop.running() as daemons:
        await (await shop.app.launch("R", None)).wait(LONG)

    assert shop.journal == ["root-0", "root-1", "root-2"]
    assert daemons.worker is not None
    assert daemons.worker.interruptions.counted.total() == 0
    assert sold() == [f"{step}, {name}" for step in range(3) for name in (*range(10), "last")]


async def test_tx_06_deallocating_what_the_engine_has_prepared_costs_one_more_attempt(shop: Shop, sold: Any) -> None:
    def body(scope: Any, message: Any) -> Iterator[Any]:
        yield from with_psycopg(scope, message.payload)
        if shop.journal.count("root-0") == 2:
            yield scope.connection.execute("deallocate all")

    shop.saga("root", "R", body)

    async with shop.running(slots=1):
        # One slot, one connection: the engine has prepared there what it needs for a step.
        await (await shop.app.launch("R", "book")).wait(LONG)
        await (await shop.app.launch("R", "pen")).wait(LONG)

    assert shop.journal == ["root-0"] * 3
    assert sold() == ["book", "pen"]


def add(shop: Shop, asynchronous: Body, blocking: Body) -> None:
    """Add a saga whose steps are written out in both colours, of which the shop's is used."""
    saga = shop.app.saga("root", on="R")
    probe = shop.coloured(lambda *_: None)
    saga.add_step("0", asynchronous if probe.__name__ == "asynchronous" else blocking)
