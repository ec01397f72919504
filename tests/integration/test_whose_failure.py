"""Whose failure an error is that happens while a callback has a connection: the step's, or the machinery's."""

import asyncio
import uuid
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from scoop_outbox import TransientError
from scoop_outbox.core.statement import BEGIN, COMMIT, RELEASE_SAVEPOINT, SAVEPOINT, Plan, ask, statement
from scoop_outbox.core.transition import Raised, Returned
from scoop_outbox.store.callbacks import Interrupted
from tests.integration.lending import Declined, called, execute, rows
from tests.integration.test_drivers import Twin

pytestmark = pytest.mark.parametrize("colour", ["async", "blocking"])

MACHINERY = ["08006", "40001", "40P01", "53100", "53200", "53300", "57P01", "57P03"]
BUSINESS = ["22012", "22P02", "23505", "42P01", "42501", "44000", "55P03", "57014", "P0001", "XX000"]


def refuses(state: str) -> str:
    """A statement that the server refuses with this SQL state."""
    return f"do $$ begin raise exception 'refused' using errcode = '{state}'; end $$"


@pytest.mark.parametrize("way", ["connection", "session"])
@pytest.mark.parametrize("state", MACHINERY)
async def test_q61_what_the_machinery_met_on_our_connection_interrupts(twin: Twin, state: str, way: str) -> None:
    def body(scope: Any, _: Any) -> Any:
        statement = refuses(state)
        yield scope.connection.execute(statement) if way == "connection" else scope.session.execute(sa.text(statement))

    with pytest.raises(Interrupted) as interrupted:
        await execute(twin, body)

    assert interrupted.value.reason.endswith(f" {state}: refused")
    assert not interrupted.value.wanted
    assert twin.driver.raw.info.transaction_status.name == "IDLE"


@pytest.mark.parametrize("state", BUSINESS)
async def test_q61_what_else_the_server_refuses_is_the_steps_failure(twin: Twin, state: str) -> None:
    def body(scope: Any, _: Any) -> Any:
        yield scope.connection.execute(refuses(state))

    outcome = await execute(twin, body)

    assert isinstance(outcome, Raised)
    assert outcome.open
    assert isinstance(outcome.error, psycopg.Error)
    assert outcome.error.sqlstate == state
    assert twin.driver.usable


async def test_q61_a_limit_that_a_statement_of_the_users_meets_is_the_steps_failure(twin: Twin) -> None:
    for setting, blocks in (("lock_timeout", "lock table t"), ("statement_timeout", "select pg_sleep(60)")):

        def body(scope: Any, _: Any, setting: str = setting, blocks: str = blocks) -> Any:
            yield scope.connection.execute("select set_config(%s, '20ms', true)", (setting,))
            yield scope.connection.execute(blocks)

        with psycopg.connect(twin.home.url) as other:
            other.execute("lock table t")
            outcome = await execute(twin, body)
        assert isinstance(outcome, Raised)
        assert isinstance(outcome.error, psycopg.errors.LockNotAvailable | psycopg.errors.QueryCanceled)


def chained(error: BaseException, how: str) -> BaseException:
    """What a user raises because of `error`."""
    match how:
        case "itself":
            return error
        case "cause":
            declined: BaseException = Declined("no")
            declined.__cause__ = error
        case "context":
            declined = Declined("no")
            declined.__context__ = error
        case "from None":
            declined = Declined("no")
            declined.__context__ = error
            declined.__suppress_context__ = True
        case _:
            declined = BaseExceptionGroup("tasks", [Declined("no"), error])
    return declined


HOW = ["itself", "cause", "context", "from None", "group"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("state", ["", "08006", "40P01", "57P01", "53300"])
async def test_q61_errors_of_other_connections_never_interrupt(twin: Twin, state: str, how: str) -> None:
    def body(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("select 1")
        try:
            if state:
                with psycopg.connect(twin.home.url) as other:
                    other.execute(refuses(state))
            else:
                psycopg.connect("postgresql://nobody@127.0.0.1:1/none", connect_timeout=2)
        except psycopg.Error as error:
            raise chained(error, how) from (error if how == "cause" else None if how == "from None" else error)

    outcome = await execute(twin, body)

    assert isinstance(outcome, Raised)
    assert outcome.open


@pytest.mark.parametrize("how", HOW)
async def test_q61_what_aborted_our_transaction_interrupts_whatever_is_made_of_it(twin: Twin, how: str) -> None:
    def body(scope: Any, _: Any) -> Any:
        try:
            yield scope.connection.execute(refuses("40P01"))
        except psycopg.Error as error:
            raise chained(error, how) from None

    with pytest.raises(Interrupted, match="40P01"):
        await execute(twin, body)


async def test_q61_a_swallowed_deadlock_interrupts(twin: Twin) -> None:
    def body(scope: Any, _: Any) -> Any:
        with pytest.raises(psycopg.Error):
            yield scope.connection.execute(refuses("40P01"))

    with pytest.raises(Interrupted, match="40P01"):
        await execute(twin, body)


@pytest.mark.parametrize("raises", [False, True])
async def test_q61_a_deadlock_inside_a_savepoint_of_the_users_is_his_to_deal_with(twin: Twin, raises: bool) -> None:
    def body(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("savepoint mine")
        with pytest.raises(psycopg.Error):
            yield scope.connection.execute(refuses("40P01"))
        yield scope.connection.execute("rollback to savepoint mine")
        if raises:
            raise Declined("no")
        yield scope.connection.execute("insert into t values (1)")

    outcome = await execute(twin, body)

    assert isinstance(outcome, Raised if raises else Returned)
    assert rows(twin, "select n from t") == ([] if raises else [(1,)])


@pytest.mark.parametrize("how", HOW)
async def test_a_transient_error_counts_through_what_is_raised_for_it(twin: Twin, how: str) -> None:
    def body(*_: Any) -> None:
        raise chained(TransientError("the customer's name is Smith"), how)

    if how == "from None":
        assert isinstance(await execute(twin, body), Raised)
        return
    with pytest.raises(Interrupted) as interrupted:
        await execute(twin, body)
    assert (interrupted.value.reason, interrupted.value.wanted) == ("TransientError", True)


async def test_q61_a_limit_that_our_own_statements_meet_is_an_interruption(twin: Twin) -> None:
    def body(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("set lock_timeout = '20ms'")

    def plan() -> Plan[None]:
        yield from ask(BEGIN, SAVEPOINT)
        yield called(twin, body)
        yield from ask(RELEASE_SAVEPOINT, statement("drop_mail", ids=[1]), COMMIT)

    with psycopg.connect(twin.home.url) as other:
        other.execute("lock table scoop_outbox.mailbox")
        with pytest.raises(Interrupted, match="LockNotAvailable 55P03: canceling statement due to lock timeout"):
            await twin.run(plan())
    assert twin.driver.usable


async def test_a05_a_connection_to_a_server_that_cannot_be_written_is_not_used_again(twin: Twin) -> None:
    def body(scope: Any, _: Any) -> Any:
        yield scope.connection.execute(refuses("25006"))

    with pytest.raises(Interrupted, match="25006"):
        await execute(twin, body)
    assert not twin.driver.usable


EXITS = [
    SystemExit("usage"),
    SystemExit(3),
    GeneratorExit(),
    asyncio.CancelledError(),
    BaseExceptionGroup("b", [SystemExit()]),
]


@pytest.mark.parametrize("error", EXITS, ids=repr)
async def test_q61_exits_of_python_are_failures_of_the_step(
    twin: Twin, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def body(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("insert into t values (1)")
        raise error

    outcome = await execute(twin, body)

    assert isinstance(outcome, Raised)
    assert (outcome.error, outcome.open) == (error, True)
    assert outcome.failure.type.rpartition(".")[2] == type(error).__name__
    assert rows(twin, "select n from t") == []
    assert twin.driver.usable
    assert (
        f"counts as a failure (saga 'saga', run {uuid.UUID(int=1)}, step 'step': {type(error).__name__})" in caplog.text
    )


async def test_q61_a_keyboard_interrupt_is_none(twin: Twin) -> None:
    def body(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("insert into t values (1)")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await execute(twin, body)
    assert rows(twin, "select n from t") == []
