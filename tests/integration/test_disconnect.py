"""Connections that are broken under whoever waits on them, whatever the server does."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import psycopg
import pytest
from psycopg.pq.abc import PGconn
from sqlalchemy import make_url

from scoop_outbox.store import disconnect as module
from scoop_outbox.store.disconnect import abort
from tests.waiting import until_blocking

SLEEPING = b"select pid from pg_stat_activity where datname = current_database() and query = 'select pg_sleep(60)'"


@contextmanager
def sleeping(connection: psycopg.Connection) -> Iterator[list[Exception]]:
    """Let a thread wait for the server; yield what it raises."""
    raised: list[Exception] = []

    def wait() -> None:
        try:
            connection.execute("select pg_sleep(60)")
        except psycopg.Error as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield raised
    finally:
        thread.join(30)
        assert not thread.is_alive()


class OldConnection:
    """As psycopg's with a libpq before 17."""

    def __init__(self, pgconn: PGconn) -> None:
        self.get_cancel = pgconn.get_cancel

    def cancel_conn(self) -> Any:
        raise psycopg.NotSupportedError("it is too old")


@pytest.mark.parametrize("libpq", ["new", "old"])
def test_the_thread_goes_on_and_the_statement_ends(
    database_url: str, monkeypatch: pytest.MonkeyPatch, libpq: str
) -> None:
    if libpq == "old":
        cancellation = module._cancellation
        monkeypatch.setattr(module, "_cancellation", lambda pgconn: cancellation(cast("PGconn", OldConnection(pgconn))))
    with psycopg.connect(database_url, autocommit=True) as observer:
        connection = psycopg.connect(database_url)
        with sleeping(connection) as raised:
            until_blocking(lambda: observer.execute(SLEEPING).fetchall())
            abort(connection)
        connection.close()
        until_blocking(lambda: not observer.execute(SLEEPING).fetchall())
    (error,) = raised
    # That would look like a failure of the step.
    assert not isinstance(error, psycopg.errors.QueryCanceled)


@asynccontextmanager
async def answering_once(host: str, port: int) -> AsyncIterator[int]:
    """A port that leads to a server the first time, and then to nobody who says a word."""
    first = itertools.count()
    ends = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        if next(first) == 0:
            to_reader, to_writer = await asyncio.open_connection(host, port)
            ends.append(to_writer)
            await asyncio.gather(pipe(reader, to_writer), pipe(to_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in ends:
            writer.close()


async def test_while_the_server_takes_no_notice_everything_else_runs_on(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own wait for the server's word held the interpreter, and with it the whole process."""
    monkeypatch.setattr(module, "_TIMEOUT", 1.5)
    url = make_url(database_url)
    async with answering_once(url.host or "", url.port or 5432) as port:
        through = url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        connection = await asyncio.to_thread(lambda: psycopg.connect(through))
        with sleeping(connection) as raised:
            aborting = asyncio.create_task(asyncio.to_thread(abort, connection))
            for ticks in itertools.count():  # noqa: B007 - used behind the loop
                if aborting.done():
                    break
                await asyncio.sleep(0.01)
        connection.close()
    assert len(raised) == 1
    assert ticks >= 3
