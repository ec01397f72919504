"""ReconnectingDriver: one driver at a time, a reason that is told once, and waits that grow."""

import logging
from typing import Any

import psycopg
import pytest

from scoop_outbox.store.callbacks import Interrupted
from scoop_outbox.store.reconnecting import LONGEST, SHORTEST, ReconnectingDriver

URL = "postgresql://shop:secret@db/shop"
log = logging.getLogger(__name__)


class FakeDriver:
    def __init__(self) -> None:
        self.usable = True
        self.closed = False
        self.prepared = 0
        self.problem: str | None = None

    async def close(self) -> None:
        assert not self.closed
        self.closed = True
        raise OSError("the connection was broken already")


class Server:
    """Opens drivers, unless it is down."""

    def __init__(self) -> None:
        self.down: list[Exception] = []
        self.unprepared: list[BaseException] = []
        self.opened: list[FakeDriver] = []

    async def open(self) -> Any:
        if self.down:
            raise self.down.pop()
        self.opened.append(FakeDriver())
        return self.opened[-1]

    async def prepare(self, driver: Any) -> None:
        if self.unprepared:
            raise self.unprepared.pop()
        driver.prepared += 1

    @property
    def open_drivers(self) -> int:
        return sum(not one.closed for one in self.opened)


def reconnecting(server: Server, **named: Any) -> ReconnectingDriver:
    return ReconnectingDriver(URL, server.open, "relay", log, server.prepare, **named)


@pytest.fixture
def server() -> Server:
    return Server()


async def test_nothing_is_opened_before_it_is_needed_and_then_one_driver_is_kept(server: Server) -> None:
    database = reconnecting(server)
    assert (database.driver, database.problem, server.opened) == (None, None, [])
    first = await database.connect()
    assert await database.connect() is first is database.driver
    assert [one.prepared for one in server.opened] == [1]


async def test_a_driver_that_is_not_usable_is_closed_and_replaced(server: Server) -> None:
    database = reconnecting(server)
    await database.connect()
    server.opened[0].usable = False
    assert (database.driver, server.open_drivers) == (None, 1)
    assert await database.connect() is database.driver
    assert [(one.closed, one.prepared) for one in server.opened] == [(True, 1), (False, 1)]


async def test_after_a_failure_there_is_no_driver_until_one_is_asked_for(server: Server) -> None:
    database = reconnecting(server)
    await database.connect()
    await database.failed(OSError())
    assert (database.driver, server.open_drivers) == (None, 0)
    await database.connect()
    await database.close()
    await database.close()
    assert (database.driver, server.open_drivers, len(server.opened)) == (None, 0, 2)


@pytest.mark.parametrize("error", [Interrupted("gone"), KeyboardInterrupt()], ids=type)
async def test_a_driver_that_cannot_be_prepared_is_never_handed_out(server: Server, error: BaseException) -> None:
    database = reconnecting(server)
    server.unprepared = [error]
    with pytest.raises(type(error)):
        await database.connect()
    assert (database.driver, server.open_drivers) == (None, 0)
    await database.connect()
    assert [one.prepared for one in server.opened] == [0, 1]


async def test_each_wait_is_twice_as_long_up_to_a_limit_until_the_database_answers(server: Server) -> None:
    database = reconnecting(server)
    assert [await database.failed(OSError()) for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, LONGEST, LONGEST]
    await database.connect()
    assert await database.failed(OSError()) == LONGEST, "a connection is no answer yet"
    database.answered()
    assert await database.failed(OSError()) == SHORTEST
    patient = reconnecting(server, longest=30.0)
    assert [await patient.failed(OSError()) for _ in range(9)][-2:] == [25.6, 30.0]


async def test_a_reason_is_logged_once_and_again_when_it_changes(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    database = reconnecting(server)
    for error in (OSError(), OSError(), psycopg.errors.UndefinedTable(), psycopg.errors.UndefinedTable(), OSError()):
        await database.failed(error)
    said = [record.getMessage() for record in caplog.records]
    start = "database: unavailable, reconnecting (relay: "
    silent = f"{start}postgresql://shop:***@db/shop cannot be used: OSError)"
    assert [silent, silent] == [said[0], said[2]]
    assert said[1].startswith(f"{start}the database postgresql://shop:***@db/shop lacks the tables")
    assert len(said) == 3
    assert {(record.name, record.levelname) for record in caplog.records} == {(__name__, "WARNING")}
    database.answered()
    await database.failed(OSError())
    assert len(caplog.records) == 4, "it was well in between"


async def test_the_line_says_whose_database_it_is(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    await reconnecting(server, service="shop").failed(OSError())
    await reconnecting(server).failed(OSError())
    assert [getattr(record, "service", None) for record in caplog.records] == ["shop", None]


async def test_the_problem_is_what_failed_last_or_that_there_is_no_answer(server: Server) -> None:
    database = reconnecting(server)
    await database.connect()
    server.opened[0].problem = "the database has not answered for 12 s"
    assert database.problem == "the database has not answered for 12 s"
    await database.failed(OSError())
    failed = database.problem
    assert failed == "postgresql://shop:***@db/shop cannot be used: OSError"
    await database.connect()
    assert database.problem == failed, "nothing has been answered yet"
    database.answered()
    assert database.problem is None


async def test_what_keeps_it_from_being_opened_is_for_the_owner_to_hand_back(server: Server) -> None:
    database = reconnecting(server)
    server.down = [psycopg.OperationalError("connection refused")]
    with pytest.raises(psycopg.OperationalError) as raised:
        await database.connect()
    assert await database.failed(raised.value) == SHORTEST
    assert "OperationalError: connection refused" in (database.problem or "")
    await database.connect()
