"""What a process answers about itself: whether it lives, whether it can work, and its numbers."""

import asyncio
import json
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql

from scoop_outbox import Message, Running, Scoop, Scope
from scoop_outbox.app import service_of
from scoop_outbox.broker.protocol import ACKNOWLEDGED, Publisher, PublishStatus, Receipt
from scoop_outbox.daemon import counters
from scoop_outbox.daemon.monitoring import health as health_module
from scoop_outbox.daemon.monitoring.health import Health, serve_health
from scoop_outbox.errors import ScoopError
from scoop_outbox.message import Envelope
from scoop_outbox.store.revisions import head
from tests.fake_broker import FakeBroker, message
from tests.waiting import until, until_blocking

SECRET = "s3cr3t-payload"  # noqa: S105 - of nobody


@pytest.fixture(autouse=True)
def always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "_FRESH", 0.0)


class Verdicts(FakeBroker):
    """A broker that gives one status for everything."""

    receipt = ACKNOWLEDGED

    async def publisher(self, name: str) -> Publisher:
        return self

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        return [self.receipt] * len(batch)

    async def probe(self) -> str | None:
        return None

    async def close(self) -> None: ...


def shop(url: str) -> Scoop:
    app = Scoop("shop", database=url)
    saga = app.saga("place-order", on="orders")

    @saga.step
    async def only(scope: Scope, message: Message) -> None: ...

    return app


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - of our own
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def asked(port: int, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(get, port, path)


async def problems(port: int, path: str = "/readyz") -> dict[str, str]:
    """Return what is wrong, and see that the rest of the answer agrees."""
    status, body = await asked(port, path)
    answer = json.loads(body)
    found: dict[str, str] = answer.pop("problems")
    assert answer == {"alive" if path == "/livez" else "ready": not found}
    assert status == (503 if found else 200)
    return found


@asynccontextmanager
async def served(app: Scoop, broker: FakeBroker | None = None) -> AsyncIterator[tuple[int, Health]]:
    port = free_port()
    service_of(app).servers.broker = broker
    async with serve_health(service_of(app).home, "127.0.0.1", port) as health, app.running() as daemons:
        health.watch(daemons)
        yield port, health


async def value(port: int, name: str) -> float | None:
    status, text = await asked(port, "/metrics")
    assert status == 200
    assert SECRET not in text
    found = re.search(rf"^scoop_outbox_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return None if found is None else float(found[1])


async def test_a_process_that_works_is_alive_and_ready(database_url: str) -> None:
    app = shop(database_url)
    async with served(app) as (port, _):
        assert await problems(port, "/livez") == {}
        assert await problems(port) == {}
        assert (await asked(port, "/readyz?verbose"))[0] == 200
        status, text = await asked(port, "/elsewhere")
        assert (status, text) == (404, "/livez, /readyz and /metrics are here\n")
        assert await asyncio.to_thread(get, port, "/livez", "HEAD") == (200, "")
        assert (await asyncio.to_thread(get, port, "/livez", "POST"))[0] == 501


async def test_what_starts_or_stops_is_alive_and_not_ready(database_url: str) -> None:
    app = shop(database_url)
    port = free_port()
    async with serve_health(service_of(app).home, "127.0.0.1", port) as health:
        assert await problems(port) == {"process": "starting"}
        assert await problems(port, "/livez") == {}
        assert await value(port, "database_up") == 1
        async with app.running() as daemons:
            health.watch(daemons)
            assert await problems(port) == {}
            health.stopping = True
            assert await problems(port) == {"process": "stopping"}
            assert await problems(port, "/livez") == {}


async def test_a_broker_in_trouble_is_no_reason_to_restart(database_url: str) -> None:
    app = shop(database_url)
    broker = Verdicts()
    broker.receipt = Receipt(PublishStatus.RETRIABLE, "no leader")
    async with served(app, broker) as (port, _):
        assert await problems(port) == {}
        await app.launch("orders", SECRET, key=SECRET)
        await until(lambda: broker_says(port, {"relay": "no leader"}))
        assert await problems(port, "/livez") == {}
        assert (await value(port, "publish_retriable_total") or 0) >= 1
        assert await value(port, "relay_problem") == 1
        assert await value(port, "outbox_rows") == 1
        assert (await value(port, "outbox_oldest_age_seconds") or 0) > 0
        broker.receipt = ACKNOWLEDGED
        await until(lambda: broker_says(port, {}))
        broker.consumers[0].problem = "the group has no coordinator"
        assert await problems(port) == {"intake": "the group has no coordinator"}
        assert await problems(port, "/livez") == {}


async def broker_says(port: int, expected: dict[str, str]) -> bool:
    return await problems(port) == expected


async def test_a_database_that_is_down_is_no_reason_to_restart(postgres_url: str, database_url: str) -> None:
    app = shop(database_url)
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]

    def allow(allowed: bool) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            alter = sql.SQL("alter database {} allow_connections {}")
            admin.execute(alter.format(sql.Identifier(str(name)), sql.Literal(allowed)))
            admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])

    async with served(app) as (port, _):
        assert await problems(port) == {}
        await asyncio.to_thread(allow, False)
        try:
            found = await problems(port)
            assert "cannot connect to postgresql://" in found["database"] or "was interrupted" in found["database"]
            assert await problems(port, "/livez") == {}
            assert await value(port, "database_up") == 0
            assert await value(port, "outbox_rows") is None
        finally:
            await asyncio.to_thread(allow, True)
        await until(lambda: broker_says(port, {}), timeout=30)


async def test_a_database_that_does_not_answer_keeps_nobody_waiting(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "_ANSWER_TIMEOUT", 0.2)
    app = shop(database_url)
    async with served(app) as (port, _):
        assert await problems(port) == {}
        with psycopg.connect(database_url) as connection:
            connection.execute("lock table scoop_outbox.alembic_version in access exclusive mode")
            answers = await asyncio.gather(*(problems(port) for _ in range(20)))
            assert {answer["database"] for answer in answers} == {"no answer within 0 s"}
            # They share one look: a frozen database is not asked once more by each who asks us.
            waiting = connection.execute("select count(*) from pg_locks where not granted").fetchone()
            assert waiting == (1,)
            assert await problems(port, "/livez") == {}
            assert (await asked(port, "/metrics"))[0] == 200
        await until(lambda: broker_says(port, {}))


async def test_a_database_of_another_revision(database_url: str) -> None:
    app = shop(database_url)
    async with served(app) as (port, _):
        for revision, says in (("0001", "run `scoop-outbox migrate"), ("from the future", None), (head(), None)):
            with psycopg.connect(database_url) as connection:
                connection.execute("update scoop_outbox.alembic_version set version_num = %s", [revision])
            found = await problems(port)
            assert list(found) == (["database"] if says else [])
            assert says is None or says in found["database"]


async def test_a_daemon_that_has_died_is_a_reason_to_restart(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = shop(database_url)

    async def die() -> None:
        raise ValueError

    async with served(app) as (port, health):
        assert health._daemons is not None
        dead = asyncio.create_task(die(), name="scoop_outbox relay")
        await asyncio.wait([dead])
        health._daemons.tasks.append(dead)
        assert await problems(port, "/livez") == {"scoop_outbox relay": "died, see the log"}
        assert await problems(port) == {"scoop_outbox relay": "died, see the log"}


async def test_a_loop_that_stands_still_is_a_reason_to_restart(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "STALLED", 1.0)
    monkeypatch.setattr(health_module, "_ANSWER_TIMEOUT", 0.1)
    app = shop(database_url)
    async with served(app) as (port, _):
        seen = threading.Event()
        asking = asyncio.get_running_loop().run_in_executor(None, stalled, port, seen)
        assert seen.wait(20)  # on the loop, which nothing may block
        alive, ready = await asking
        assert alive[0] == ready[0] == 503
        assert "event loop blocked for" in alive[1]
        await until(lambda: broker_says(port, {}))


def stalled(port: int, seen: threading.Event) -> tuple[tuple[int, str], tuple[int, str]]:
    try:
        until_blocking(lambda: get(port, "/livez")[0] != 200, 15)
        return get(port, "/livez"), get(port, "/readyz")
    finally:
        seen.set()


async def test_numbers_of_relay_worker_and_intake(database_url: str) -> None:
    app = shop(database_url)
    broker = Verdicts()
    async with served(app, broker) as (port, _):
        for number in range(3):
            await app.launch("orders", [SECRET, number], key=SECRET)
        await until(lambda: metric(port, 'published_total{topic="orders"}', 3))
        broker.put(*(message(number) for number in range(5)))
        await until(lambda: metric(port, "intake_taken_in_total", 5))
        await until(lambda: metric(port, "due_work", 0))
        assert (await value(port, "worker_claims_total") or 0) >= 5
        assert await value(port, "worker_busy_slots") == 0
        assert await value(port, 'worker_interruptions_total{kind="machinery",saga="place-order"}') == 0
        assert await value(port, 'runs_total{saga="place-order",service="shop",state="parked"}') == 0
        assert await value(port, "runs_parked") == 0
        assert await value(port, "runs_interrupted") == 0
        assert await value(port, "intake_paused") == 0
        assert await value(port, "relay_shards") == 8
        assert (await value(port, "publish_seconds_count") or 0) >= 1
        assert await value(port, 'publish_seconds_bucket{le="+Inf"}') == await value(port, "publish_seconds_count")
        assert await value(port, "outbox_rows") == 0
        assert (await value(port, "process_resident_memory_bytes") or 0) > 1e6
        broker.receipt = Receipt(PublishStatus.PERMANENT, f"{SECRET} is too large")
        await app.launch("orders", SECRET)
        await until(lambda: metric(port, 'dead_letters_total{origin="relay",reason="too_large"}', 1))
        broker.put(replace(message(9), defect="its header is no UUID"))
        await until(lambda: metric(port, 'dead_letters_total{origin="intake",reason="unusable"}', 1))
        _, text = await asked(port, "/metrics")
        names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
        assert all(name.startswith("scoop_outbox_") for name in names)


async def test_a_program_that_embeds_gets_the_same_answers_as_the_port(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = shop(database_url)
    broker = Verdicts()
    async with served(app, broker) as (port, health):
        running = health._daemons
        assert isinstance(running, Running)
        assert await running.ready()
        assert await running.problems() == {}
        await until(lambda: broker.consumers)
        broker.consumers[0].problem = "the group has no coordinator"
        assert not await running.ready()
        assert await running.problems() == await problems(port) == {"intake": "the group has no coordinator"}
        broker.consumers[0].problem = None

        def names(text: str) -> set[str]:
            return set(re.findall(r"^# TYPE (.*)$", text, re.MULTILINE))

        assert names(await running.metrics()) == names((await asked(port, "/metrics"))[1])
        assert "scoop_outbox_database_up 1.0\n" in await running.metrics()

        monkeypatch.setattr(health_module, "_ANSWER_TIMEOUT", 0.1)
        with psycopg.connect(database_url) as connection:
            connection.execute("lock table scoop_outbox.alembic_version in access exclusive mode")
            assert await running.problems() == {"database": "no answer within 0 s"}
            assert "scoop_outbox_database_up 0.0\n" in await running.metrics()
        await until(running.ready)


async def test_a_program_that_has_left_running_is_not_ready_and_opens_nothing(database_url: str) -> None:
    app = shop(database_url)
    async with app.running() as running:
        assert await running.ready()
    opened = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'sc%'"
    assert await running.problems() == {"process": "stopping"}
    assert "scoop_outbox_worker_claims_total" in await running.metrics()
    with psycopg.connect(database_url) as connection:
        await until(lambda: connection.execute(opened.encode()).fetchone() == (0,))


async def metric(port: int, name: str, expected: float) -> bool:
    return await value(port, name) == expected


def test_topics_do_not_grow_without_end() -> None:
    counted = counters.RelayCounters()
    counted.acknowledged(f"topic {number}" for number in range(1000))
    counted.acknowledged(["topic 0"])
    assert len(counted.published) == counters.TOPICS + 1
    assert counted.published["topic 0"] == 2
    assert counted.published[counters.OTHER] == 1000 - counters.TOPICS


@pytest.mark.parametrize(
    "reason, expected",
    [
        ("there is no topic orders: create it", "no_topic"),
        ("it is not permitted to write to the topic orders", "no_permission"),
        ("Kafka refuses it: Broker: Message size too large", "too_large"),
        ("something else", "other"),
    ],
)
def test_reasons_are_of_few_classes(reason: str, expected: str) -> None:
    assert counters.reason_class(reason) == expected


async def test_a_port_that_is_taken_is_told_in_words(database_url: str) -> None:
    app = shop(database_url)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ScoopError, match=rf"cannot listen on 127.0.0.1 port {port}: .*--port"):
            async with serve_health(service_of(app).home, "127.0.0.1", port):
                raise AssertionError
