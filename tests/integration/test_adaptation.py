"""What a program tells psycopg about values is for its own statements: the engine's are as ever."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.rows import class_row, dict_row, kwargs_row, namedtuple_row, scalar_row
from psycopg.types.json import set_json_loads
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from scoop_outbox import Scoop
from tests.integration.hostile import TYPES, OddDumper, OddLoader, Topics, refuse
from tests.integration.relaying import ask

ROOT = Path(__file__).parents[2]
Raw = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


@pytest.mark.parametrize("when", ["before", "after"])
def test_c14_a_program_may_adapt_every_value_in_its_own_way(database_url: str, when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.hostile", when, database_url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout == "OK\n", done.stderr


class Row:
    def __init__(self, **columns: Any) -> None:
        raise AssertionError("a row of the engine was made into one of the program")


def odd_adapters(connection: Raw) -> None:
    for name in TYPES:
        connection.adapters.register_loader(name, OddLoader)
    for kind in (str, int, bool, bytes, list, Topics):
        connection.adapters.register_dumper(kind, OddDumper)
    set_json_loads(refuse, connection)


def rows(factory: Any) -> Callable[[Raw], None]:
    def set_factory(connection: Raw) -> None:
        connection.row_factory = factory

    return set_factory


def cursors(of: str) -> Callable[[Raw], None]:
    def set_cursors(connection: Raw) -> None:
        kind = f"Async{of}" if isinstance(connection, psycopg.AsyncConnection) else of
        connection.cursor_factory = getattr(psycopg, kind)

    return set_cursors


def never_prepares(connection: Raw) -> None:
    connection.prepare_threshold = None


def always_prepares(connection: Raw) -> None:
    connection.prepare_threshold = 0


ODD: dict[str, Callable[[Raw], None]] = {
    "adapters": odd_adapters,
    "rows are dictionaries": rows(dict_row),
    "rows are named tuples": rows(namedtuple_row),
    "rows are objects": rows(class_row(Row)),
    "rows are arguments": rows(kwargs_row(Row)),
    "rows are their first column": rows(scalar_row),
    "cursors that number their parameters": cursors("RawCursor"),
    "cursors that fill parameters in": cursors("ClientCursor"),
    "never prepares": never_prepares,
    "always prepares": always_prepares,
}


def stored(url: str) -> list[tuple[Any, ...]]:
    return ask(url, "select topic, key, convert_from(body, 'utf8'), headers ->> 'h' from outbox order by seq")


MESSAGES = [("orders", "kéy", f'{{"number":{number}}}', "v") for number in range(7)]


@pytest.mark.parametrize("odd", ODD)
async def test_c14_launching_in_an_odd_connection(database_url: str, odd: str) -> None:
    app = Scoop("odd", database=database_url)
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        ODD[odd](connection)
        for number in range(7):
            await app.launch(Topics.ORDERS, {"number": number}, key="kéy", headers={"h": "v"}, session=connection)
    await app.close()
    assert stored(database_url) == MESSAGES


@pytest.mark.parametrize("odd", ODD)
def test_c14_launching_in_an_odd_blocking_connection(database_url: str, odd: str) -> None:
    app = Scoop("odd", database=database_url)
    with psycopg.connect(database_url) as connection:
        ODD[odd](connection)
        for number in range(7):
            app.launch_sync(Topics.ORDERS, {"number": number}, key="kéy", headers={"h": "v"}, session=connection)
    app.close_sync()
    assert stored(database_url) == MESSAGES


@pytest.mark.parametrize("kind", [AsyncSession, AsyncConnection])
@pytest.mark.parametrize("odd", ["adapters", "never prepares"])
async def test_c14_launching_in_an_odd_session(database_url: str, odd: str, kind: Any) -> None:
    app = Scoop("odd", database=database_url)
    engine = create_async_engine(sa.make_url(database_url).set(drivername="postgresql+psycopg"))
    event.listen(engine.sync_engine, "connect", lambda _, record: ODD[odd](record.driver_connection))
    async with AsyncSession(engine) if kind is AsyncSession else engine.connect() as session:
        for number in range(7):
            await app.launch(Topics.ORDERS, {"number": number}, key="kéy", headers={"h": "v"}, session=session)
        await session.commit()
    await engine.dispose()
    await app.close()
    assert stored(database_url) == MESSAGES


@pytest.mark.parametrize("kind", [Session, sa.Connection])
@pytest.mark.parametrize("odd", ["adapters", "never prepares"])
def test_c14_launching_in_an_odd_blocking_session(database_url: str, odd: str, kind: Any) -> None:
    app = Scoop("odd", database=database_url)
    engine = sa.create_engine(sa.make_url(database_url).set(drivername="postgresql+psycopg"))
    event.listen(engine, "connect", lambda _, record: ODD[odd](record.driver_connection))
    with Session(engine) if kind is Session else engine.connect() as session:
        for number in range(7):
            app.launch_sync(Topics.ORDERS, {"number": number}, key="kéy", headers={"h": "v"}, session=session)
        session.commit()
    engine.dispose()
    app.close_sync()
    assert stored(database_url) == MESSAGES


async def test_c14_launching_in_a_pipeline(database_url: str) -> None:
    app = Scoop("odd", database=database_url)
    async with await psycopg.AsyncConnection.connect(database_url) as connection, connection.pipeline():
        for number in range(7):
            await app.launch("orders", {"number": number}, key="kéy", headers={"h": "v"}, session=connection)
    with psycopg.connect(database_url) as blocking, blocking.pipeline():
        app.launch_sync("orders", {"number": 7}, session=blocking)
    await app.close()
    assert stored(database_url) == [*MESSAGES, ("orders", None, '{"number":7}', None)]
