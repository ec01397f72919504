"""A database that does not answer: it is noticed and told, and the connection is not waited for for ever."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from scoop_outbox import Scoop
from scoop_outbox.daemon.relay import prefetch as prefetch_module
from scoop_outbox.daemon.worker.worker import Worker
from scoop_outbox.store import time_limit as time_limit_module
from scoop_outbox.store.connect import driver_engine
from scoop_outbox.store.pooler import Pooler
from tests.integration.relaying import FakePublisher, left, made, relaying, write
from tests.waiting import until


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit_module, "ANSWER_TIMEOUT", 0.5)
    monkeypatch.setattr(prefetch_module, "ANSWER_TIMEOUT", 0.5)
    monkeypatch.setattr(time_limit_module, "_LONG", 0.1)


def listening(url: str, *sagas: str) -> Scoop:
    app = Scoop("shop", database=url)
    for name in sagas:
        app.saga(name, on=name).add_step("only", nothing)
    return app


async def nothing(_: object, __: object) -> None: ...


@pytest.mark.usefixtures("impatient")
async def test_a_relay_whose_connection_does_not_answer_says_so_and_takes_another_one(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = FakePublisher()
    async with relaying(database_url, publisher) as relay:
        await until(lambda: relay.shards)
        with psycopg.connect(database_url) as holder:
            holder.execute("lock table scoop_outbox.outbox")
            await until(lambda: "has not answered for" in (relay.problem or ""))
            await until(lambda: "cannot be used: " in caplog.text)
        write(database_url, made(1, "k"))
        await until(lambda: left(database_url) == 0)
        await until(lambda: relay.problem is None)
    assert publisher.of("k") == [1]


@pytest.mark.usefixtures("impatient")
async def test_what_reads_ahead_is_not_waited_for_for_ever_either(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("scoop_outbox.daemon.relay.scan.BATCH", 10)
    write(database_url, *(made(number, "k") for number in range(100)))
    publisher = FakePublisher()
    publisher.open.clear()
    with psycopg.connect(database_url) as holder:
        # Not what has been read already: only the second batch is waited for.
        read = prefetch_module.Prefetch._run

        def late(reader: Any, plan: Any) -> Any:
            holder.execute("lock table scoop_outbox.outbox")
            return read(reader, plan)

        monkeypatch.setattr(prefetch_module.Prefetch, "_run", late)
        async with relaying(database_url, publisher):
            await until(lambda: "relay: reading ahead failed (Interrupted)" in caplog.text)
            monkeypatch.setattr(prefetch_module.Prefetch, "_run", read)
            holder.rollback()
            publisher.open.set()
            await until(lambda: left(database_url) == 0)
    assert publisher.of("k") == list(range(100))


@pytest.mark.usefixtures("impatient")
async def test_a_worker_whose_connection_does_not_answer_says_so_and_takes_another_one(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = listening(database_url, "orders")
    async with app.running() as daemons:
        worker = daemons.worker
        assert worker is not None
        with psycopg.connect(database_url) as holder:
            holder.execute("lock table scoop_outbox.mailbox")
            await until(lambda: "has not answered for" in (worker.problem or ""))
            await until(lambda: "database: unavailable, reconnecting (worker of shop: " in caplog.text)
        handle = await app.launch("orders", 1)
        await handle.wait(timeout=10)
        await until(lambda: worker.problem is None)
    await app.close()


def test_a_peer_that_is_gone_without_a_word_is_noticed_unless_the_url_says_how(database_url: str) -> None:
    plain = make_url(database_url)
    said = plain.update_query_dict({"tcp_user_timeout": "7000", "connect_timeout": "3"})
    found = []
    for url in (plain, said):
        said_so = url.render_as_string(hide_password=False)
        engine = driver_engine(said_so, "patience test", Pooler(said_so))
        with engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            given = raw.info.get_parameters()
            found.append({name: given.get(name) for name in ("keepalives_idle", "tcp_user_timeout", "connect_timeout")})
        engine.dispose()
    assert found == [
        {"keepalives_idle": "10", "tcp_user_timeout": "25000", "connect_timeout": "10"},
        {"keepalives_idle": "10", "tcp_user_timeout": "7000", "connect_timeout": "3"},
    ]


async def test_workers_of_the_same_service_in_another_schema_are_no_peers(database_url: str) -> None:
    shops = [Scoop("shop", database=database_url, schema=schema) for schema in ("scoop_outbox", "another")]
    for app in shops:
        app.saga("only", on="orders").add_step("only", nothing)
        await app.migrate()
    async with shops[0].running() as here, shops[1].running() as there:
        workers = [daemons.worker for daemons in (here, there)]
        await until(lambda: all(isinstance(one, Worker) and one._database.driver is not None for one in workers))
        for worker in workers:
            assert worker is not None
            worker._roster._due_at = 0.0
            worker._feeder.wake()
        await until(lambda: all(worker is not None and worker._roster.left for worker in workers))
        assert [worker._roster.others for worker in workers if worker is not None] == [0, 0]
    for app in shops:
        await app.close()


DYING = """
from scoop_outbox import Scoop
from scoop_outbox.daemon.relay.relay import Relay


async def die(relay):
    raise ValueError("nobody expected this")


async def nothing(scope, message): ...


Relay._cycle = die
app = Scoop("shop")
app.saga("only", on="orders").add_step("only", nothing)
"""


async def test_a_process_of_which_a_part_has_died_ends_and_says_so(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    command = [sys.executable, "-m", "scoop_outbox", "worker", "dying:app", "--relay", "--database", database_url]
    ended = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1, ended.stderr
    assert "nobody expected this" in ended.stderr
    assert ended.stderr.rstrip().endswith("process: ending with status 1 (died: scoop_outbox relay)")
