"""The two drivers: the same text but for their colour, and the same behaviour on a real Postgres."""

import asyncio
import difflib
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from scoop_outbox.core.run import Run, RunState
from scoop_outbox.core.statement import BEGIN, COMMIT, ROLLBACK, SAVEPOINT, Call, Plan, Refused, Rows, ask, statement
from scoop_outbox.core.transition import Raised, Returned
from scoop_outbox.errors import StepError, TransientError
from scoop_outbox.message import Message
from scoop_outbox.store import async_driver, blocking_driver
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.store.blocking_driver import BlockingDriver
from scoop_outbox.store.callbacks import Interrupted
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.waiting import until

# The twins -------------------------------------------------------------------------------------------------------

COLOURLESS = [
    (r"\b(await|async) ", ""),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basync_", ""),
    (r"\bBlocking(?=[A-Z])", ""),
    (r"__a(enter|exit|iter|next)__", r"__\1__"),
    (r"\n(from|import) [^\n]*(\([^)]*\))?", ""),
    (r"\banswered\(self\.raw, ", "self.raw.wait("),
    (r"raw = \(?outer\.[\w().]+\)?\.driver_connection", "raw = outer.driver_connection"),
    (r"outer\.run_sync\(Connection\.detach\)", "outer.detach()"),
    (r'^"""[^\n]*', '"""'),
    (r"\s+", " "),
    (r"([(\[]) | ([)\]])", r"\1\2"),
]


ALONE = ["abort"]
"""What only a thread needs: a coroutine is cancelled instead."""


def colourless(path: str) -> list[str]:
    text = Path(path).read_text("utf-8")
    for name in ALONE:
        text = re.sub(rf"\n    def {name}\(.*?(?=\n    (async )?def )", "", text, flags=re.DOTALL)
    for pattern, replacement in COLOURLESS:
        text = re.sub(pattern, replacement, text)
    return re.split(r"(?<=[.:,)]) ", text)


def test_the_drivers_are_the_same_but_for_their_colour() -> None:
    one, other = colourless(async_driver.__file__), colourless(blocking_driver.__file__)
    assert len(one) > 100
    assert list(difflib.unified_diff(one, other, "aio.py", "blocking.py", lineterm="", n=2)) == []


# Both on a real Postgres -----------------------------------------------------------------------------------------


class Twin:
    """A driver of either colour, to be used in one way."""

    def __init__(self, home: Home, driver: AsyncDriver | BlockingDriver) -> None:
        self.home = home
        self.driver = driver
        self.closed = False

    async def run(self, plan: Plan[Any]) -> Any:
        if isinstance(self.driver, AsyncDriver):
            return await self.driver.run(plan)
        return await asyncio.to_thread(self.driver.run, plan)

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if isinstance(self.driver, AsyncDriver):
            await self.driver.close()
        else:
            self.driver.close()

    def call(self, does: Any, **more: Any) -> Call:
        """Return a call of `does(execute)` in the colour of the driver."""
        if isinstance(self.driver, AsyncDriver):

            async def coroutine(scope: Any, message: Any, error: Any = None) -> Any:
                result = does(scope)
                return await result if asyncio.iscoroutine(result) else result

            callback: Callable[..., Any] = coroutine
        else:

            def plain(scope: Any, message: Any, error: Any = None) -> Any:
                return does(scope)

            callback = plain

        run_id = uuid.UUID(int=1)
        run = Run(run_id, run_id, "shop", "saga", (run_id,), None, RunState.RUNNING, context='{"a":1}')
        message = Message(run_id, "topic", None, b"1", "application/json", {}, None)  # type: ignore[arg-type]
        return Call(callback, run, "step", message, 0, 0, "key", "saga[w]", **more)


@pytest.fixture(params=["async", "blocking"])
async def twin(request: pytest.FixtureRequest, database_url: str) -> Any:
    with psycopg.connect(database_url) as connection:
        connection.execute("create table t (n int primary key, later int unique deferrable initially deferred)")
    home = Home(database_url, DEFAULT_SCHEMA, f"test {request.param}")
    driver = await home.connect_for_steps() if request.param == "async" else home.connect_for_steps_blocking()
    twin = Twin(home, driver)
    yield twin
    await twin.close()
    await home.dispose()


def ask_directly(twin: Twin, question: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(twin.home.url) as connection:
        return connection.execute(question.encode()).fetchall()


def subscribe(*sagas: str | None) -> Any:
    count = len(sagas)
    return statement(
        "subscribe",
        topics=["t"] * count,
        services=["s"] * count,
        sagas=list(sagas),
        ordered=[False] * count,
        patterns=[None] * count,
        names=["[]"] * count,
        external=[False] * count,
        via_broker=False,
        retentions=[None] * count,
        payload_retentions=[None] * count,
    )


def subscribed(twin: Twin) -> list[str]:
    return [saga for (saga,) in ask_directly(twin, "select saga from scoop_outbox.subscription order by saga")]


async def test_a_plan_gets_the_rows_of_each_statement(twin: Twin) -> None:
    def plan() -> Plan[list[Rows]]:
        one: list[Rows] = yield from ask(statement("read_revision"))
        several: list[Rows] = yield from ask(
            BEGIN, subscribe("a", "b"), statement("read_revision"), statement("drop_mail", ids=[]), COMMIT
        )
        return [*one, *several]

    revision = ask_directly(twin, "select version_num from scoop_outbox.alembic_version")
    assert await twin.run(plan()) == [revision, [], [], revision, [], []]
    assert subscribed(twin) == ["a", "b"]


async def test_what_is_not_committed_is_gone(twin: Twin) -> None:
    def forgotten() -> Plan[None]:
        yield from ask(BEGIN, subscribe("a"))

    def rolled_back() -> Plan[None]:
        yield from ask(BEGIN, subscribe("b"))
        yield from ask(ROLLBACK)

    def raises() -> Plan[None]:
        yield from ask(BEGIN, subscribe("c"))
        raise ValueError("a bug of the plan")

    await twin.run(rolled_back())
    with pytest.raises(ValueError, match="a bug of the plan"):
        await twin.run(raises())
    assert subscribed(twin) == []
    assert twin.driver.usable
    await twin.run(forgotten())
    await twin.close()
    assert subscribed(twin) == []


async def test_a_refused_statement_is_thrown_into_the_plan_with_nothing_left_open(twin: Twin) -> None:
    def plan() -> Plan[str]:
        try:
            yield from ask(BEGIN, subscribe("a"), subscribe(None), COMMIT)
        except Refused as refused:
            yield from ask(BEGIN, subscribe("b"), COMMIT)
            return type(refused.error).__name__
        return "not refused"

    assert await twin.run(plan()) == "NotNullViolation"
    assert subscribed(twin) == ["b"]
    assert twin.driver.usable


async def test_a_refusal_that_the_plan_does_not_handle_is_the_databases_error(twin: Twin) -> None:
    def plan() -> Plan[None]:
        yield from ask(BEGIN, subscribe("a"))
        yield from ask(subscribe(None))

    with pytest.raises(psycopg.errors.NotNullViolation):
        await twin.run(plan())
    assert twin.driver.usable
    assert twin.driver.raw.info.transaction_status.name == "IDLE"
    assert subscribed(twin) == []


async def test_a_lost_connection_is_an_interruption(twin: Twin) -> None:
    def plan() -> Plan[None]:
        yield from ask(BEGIN, subscribe("a"))
        ask_directly(twin, f"select pg_terminate_backend({twin.driver.raw.info.backend_pid})")
        try:
            yield from ask(COMMIT)
        except Refused:
            pytest.fail("a lost connection is no refusal")

    with pytest.raises(Interrupted):
        await twin.run(plan())
    assert not twin.driver.usable
    assert subscribed(twin) == []


async def test_a_deadlock_is_an_interruption_and_the_connection_stays(twin: Twin) -> None:
    def plan() -> Plan[None]:
        yield from ask(BEGIN)
        yield twin.call(lambda scope: scope.connection.execute(REFUSES.format("40P01")))

    with pytest.raises(Interrupted):
        await twin.run(plan())
    assert twin.driver.usable
    assert twin.driver.raw.info.transaction_status.name == "IDLE"


REFUSES = "do $$ begin raise exception 'refused' using errcode = '{}'; end $$"


def fail(error: BaseException) -> None:
    raise error


def call(twin: Twin, does: Any, *before: Any, **more: Any) -> Plan[Any]:
    yield from ask(BEGIN, SAVEPOINT, *before)
    outcome = yield twin.call(does, **more)
    yield from ask(COMMIT)
    return outcome


async def test_what_a_driver_has_called_is_seen_while_its_plan_lasts(twin: Twin) -> None:
    """A slot that goes on with another driver would else seem to execute it still."""
    seen: list[Any] = []

    def plan(asked: Any) -> Plan[None]:
        yield from ask(BEGIN, SAVEPOINT)
        seen.append(twin.driver.called)
        yield asked
        seen.append(twin.driver.called)
        yield from ask(COMMIT)

    for _ in range(2):
        asked = twin.call(lambda _: seen.append(twin.driver.called))
        await twin.run(plan(asked))
        seen.append(twin.driver.called)
        assert seen == [None, asked, asked, None]
        seen.clear()


async def test_a_callback_that_returns_commits_what_it_wrote(twin: Twin) -> None:
    def does(scope: Any) -> Any:
        scope.launch("topic", 1)
        scope.set_result(2)
        scope.context["b"] = 3
        return scope.connection.execute("insert into t values (1)")

    outcome = await twin.run(call(twin, does))
    assert isinstance(outcome, Returned)
    assert [emission.topic for emission in outcome.emissions] == ["topic"]
    assert (outcome.context, outcome.result) == ('{"a":1,"b":3}', "2")
    assert ask_directly(twin, "select n from t") == [(1,)]


async def test_a_callback_that_raises_loses_what_it_wrote_and_keeps_its_context(twin: Twin) -> None:
    def does(scope: Any) -> Any:
        scope.context["b"] = 3
        if isinstance(twin.driver, BlockingDriver):
            scope.connection.execute("insert into t values (1)")
        raise ValueError("no")

    outcome = await twin.run(call(twin, does, subscribe("a")))
    assert isinstance(outcome, Raised)
    assert (outcome.failure.type, outcome.failure.message, outcome.failure.source) == ("ValueError", "no", "saga[w]")
    assert outcome.context == '{"a":1,"b":3}'
    assert ask_directly(twin, "select n from t") == []


async def test_a_callback_that_breaks_the_transaction_fails_and_the_record_survives(twin: Twin) -> None:
    def does(scope: Any) -> Any:
        return scope.connection.execute("insert into nowhere values (1)")

    def plan() -> Plan[Any]:
        outcome = yield from call(twin, does)
        yield from ask(BEGIN, subscribe("a"), COMMIT)
        return outcome

    outcome = await twin.run(plan())
    assert isinstance(outcome, Raised)
    assert isinstance(outcome.error, psycopg.errors.UndefinedTable)
    assert subscribed(twin) == ["a"]


async def test_a_callback_whose_value_cannot_be_used_has_raised(twin: Twin) -> None:
    def check(value: object) -> None:
        raise StepError(f"returned {value}")

    outcome = await twin.run(call(twin, lambda scope: 7, check=check))
    assert isinstance(outcome, Raised)
    assert outcome.failure.message == "returned 7"


async def test_transient_errors_of_a_callback_are_interruptions(twin: Twin) -> None:
    for does in (
        lambda scope: fail(TransientError("not now")),
        lambda scope: scope.connection.execute(REFUSES.format("40001")),
    ):
        with pytest.raises(Interrupted):
            await twin.run(call(twin, does))
        assert twin.driver.usable


async def test_exits_of_python_undo_the_transaction_and_go_on(twin: Twin) -> None:
    with pytest.raises(KeyboardInterrupt):
        await twin.run(interrupted(twin))
    assert subscribed(twin) == []


def interrupted(twin: Twin) -> Plan[None]:
    yield from ask(BEGIN, subscribe("a"))
    raise KeyboardInterrupt


async def test_a_session_writes_in_the_steps_transaction(twin: Twin) -> None:
    def does(scope: Any) -> Any:
        return scope.session.execute(text("insert into t values (1)"))

    outcome = await twin.run(call(twin, does))
    assert isinstance(outcome, Returned)
    assert ask_directly(twin, "select n from t") == [(1,)]
    assert twin.driver.usable


async def test_a_driver_that_is_released_is_used_again_and_a_broken_one_is_not(database_url: str) -> None:
    home = Home(database_url, DEFAULT_SCHEMA, "test")
    pids = []
    for lost in (False, True, False):
        async with home.driver() as driver:
            pids.append(driver.raw.info.backend_pid)
            if lost:
                driver.usable = False
    assert pids[0] == pids[1] != pids[2]
    await home.dispose()
    await until(lambda: connections(database_url) == [])


def connections(url: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        question = "select 1 from pg_stat_activity where datname = current_database() and application_name = 'test'"
        return connection.execute(question).fetchall()
