"""Q63: a step that takes longer than it may has failed, and its worker goes on."""

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from scoop_outbox import DefinitionError, DistributedError, Retry, RunState, Saga, StepTimeout
from tests.scenarios.shop import COLOURS, LONG, Shop, raises
from tests.waiting import until, until_blocking

SHORT = 0.3
TIMEOUT = "scoop_outbox.errors.StepTimeout"
each_colour = pytest.mark.parametrize("colour", COLOURS[:2], indirect=True)


def sleeps_at_the_server(scope: Any, _: Any) -> Any:
    yield scope.connection.execute("select pg_sleep(60)")


def writes_and_sleeps(scope: Any, _: Any) -> Any:
    yield scope.connection.execute("insert into written values (1)")
    yield scope.connection.execute("select pg_sleep(60)")


@each_colour
async def test_q63_a_step_that_takes_too_long_fails_and_what_it_wrote_is_undone(shop: Shop, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("create table written (number int)")
    root = shop.saga("root", "R", None)
    shop.step(root, "1", writes_and_sleeps, timeout=SHORT)
    shop.saga("other", "O", None)

    async with shop.running(slots=1):
        handle = await shop.app.launch("R", None)
        with pytest.raises(DistributedError) as caught:
            await handle.wait(LONG)
        await (await shop.app.launch("O", None)).wait(LONG)  # its slot is free

    assert (caught.value.type, caught.value.message) == (
        TIMEOUT,
        "step '1' of saga 'root' has taken longer than 0.3 s, and was ended",
    )
    assert shop.journal == ["root-0", "root-1", "root-rb0", "other-0"]
    assert await shop.ask("select from written") == []
    await until(lambda: _nobody_sleeps(shop), LONG)


async def _nobody_sleeps(shop: Shop) -> bool:
    asleep = "select from pg_stat_activity where query like %s and state = 'active'"
    return not await shop.ask(asleep, "%pg_sleep(60)%")


@each_colour
async def test_q63_the_next_attempt_has_all_its_time(shop: Shop) -> None:
    def slow_at_first(scope: Any, _: Any) -> Any:
        if scope.attempt == 0:
            yield scope.connection.execute("select pg_sleep(60)")
        yield scope.connection.execute("select 1")

    root = shop.app.saga("root", "R")
    again = Retry(attempts=2, on=(StepTimeout,), backoff=0.01)
    shop.step(root, "0", slow_at_first, timeout=timedelta(seconds=1), retry=again)

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "root-0"]
    (run,) = await shop.runs(handle)
    assert run.state is RunState.COMMITTED
    assert [(step.state, step.failure and step.failure.type) for step in run.steps] == [
        ("failed", TIMEOUT),
        ("committed", None),
    ]


@each_colour
async def test_q63_a_step_that_swallows_it_has_failed_all_the_same(shop: Shop) -> None:
    def swallows(scope: Any, _: Any) -> Any:
        try:
            yield scope.connection.execute("select pg_sleep(60)")
        except BaseException:  # noqa: BLE001 - what must not be done
            shop.journal("root-swallowed")

    root = shop.app.saga("root", "R")
    shop.step(root, "0", swallows, timeout=SHORT)

    _, error = await shop.fail("R")

    assert error.type == TIMEOUT
    assert shop.journal == ["root-0", "root-swallowed"]


async def test_q63_a_def_that_asks_nothing_of_the_database_has_failed_when_it_returns(mixed: Shop) -> None:
    def computes(scope: Any, message: Any) -> None:
        until_blocking(lambda: scope.cut is not None, LONG)  # its connection is gone, and it goes on

    root = mixed.saga("root", "R", None)
    root.add_step("1", computes, timeout=SHORT)

    _, error = await mixed.fail("R")

    assert error.type == TIMEOUT
    assert mixed.journal == ["root-0", "root-rb0"]


@each_colour
async def test_q63_a_session_in_the_midst_of_a_statement_is_ended_too(shop: Shop) -> None:
    def through_the_session(scope: Any, _: Any) -> Any:
        from sqlalchemy import text  # noqa: PLC0415

        yield scope.session.execute(text("select pg_sleep(60)"))

    root = shop.app.saga("root", "R")
    shop.step(root, "0", through_the_session, timeout=SHORT)

    _, error = await shop.fail("R")

    assert error.type == TIMEOUT


@each_colour
async def test_a_step_within_its_time_is_left_alone(shop: Shop) -> None:
    def works(scope: Any, _: Any) -> Any:
        yield scope.connection.execute("select 1")

    root = shop.app.saga("root", "R")
    for number in range(20):
        shop.step(root, str(number), works, timeout=LONG)

    handle = await shop.run("R")

    assert await shop.states(handle) == {"root": RunState.COMMITTED}


async def test_a_worker_that_stops_takes_its_steps_with_it(mixed: Shop) -> None:
    entered = asyncio.Event()

    async def waits(scope: Any, message: Any) -> None:
        entered.set()
        await asyncio.Event().wait()  # for ever

    mixed.app.saga("root", "R").add_step("0", waits, timeout=60)

    async with mixed.running(grace=0.1):
        handle = await mixed.app.launch("R", None)
        await asyncio.wait_for(entered.wait(), LONG)

    assert (await mixed.only(handle, "root")).state is RunState.RUNNING


def test_a_time_limit_is_a_duration() -> None:
    with pytest.raises(DefinitionError, match="timeout=0: pass more than 0 seconds"):
        Saga("s", "t").add_step("0", raises(), timeout=0)
