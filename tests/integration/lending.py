"""Steps that use what they are lent, executed by either driver."""

import dataclasses
from collections.abc import Callable
from typing import Any

import psycopg

from scoop_outbox.core.statement import BEGIN, COMMIT, RELEASE_SAVEPOINT, SAVEPOINT, Call, Plan, ask
from scoop_outbox.core.transition import Returned
from scoop_outbox.store.async_driver import AsyncDriver
from tests.integration.test_drivers import Twin
from tests.scenarios.shop import callback


class Declined(Exception):
    """A failure of the business."""


def nothing(scope: Any, _: Any) -> None:
    """A step that asks for nothing."""


def called(twin: Twin, body: Callable[..., Any]) -> Call:
    colour = "async" if isinstance(twin.driver, AsyncDriver) else "blocking"
    return dataclasses.replace(twin.call(nothing), callback=callback(colour, body))


def step(twin: Twin, body: Callable[..., Any]) -> Plan[Any]:
    """One step whose body is written as in `tests.scenarios.shop`; answer how it ended."""
    yield from ask(BEGIN, SAVEPOINT)
    outcome = yield called(twin, body)
    if isinstance(outcome, Returned):
        yield from ask(RELEASE_SAVEPOINT, COMMIT)
    elif outcome.open:
        yield from ask(COMMIT)
    return outcome


async def execute(twin: Twin, body: Callable[..., Any]) -> Any:
    return await twin.run(step(twin, body))


def pid(twin: Twin) -> int:
    return twin.driver.raw.info.backend_pid


def rows(twin: Twin, question: str) -> list[Any]:
    with psycopg.connect(twin.home.url, autocommit=True) as connection:
        cursor = connection.execute(question.encode())
        return cursor.fetchall() if cursor.description else []


def backends(twin: Twin, pid: int, query: str | None = None) -> list[Any]:
    """The server's process of that number, if it is there, and does this."""
    with psycopg.connect(twin.home.url) as connection:
        found = "select 1 from pg_stat_activity where pid = %s and query = coalesce(%s, query)"
        return connection.execute(found, (pid, query)).fetchall()
