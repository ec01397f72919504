"""Launching on a topic that no saga is subscribed to (Q71): it goes on at once, is told once, and counted."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from scoop_outbox import DefinitionError, DistributedError, Message, Retry, Scoop, Scope, Topic, UnhandledMessage
from scoop_outbox.daemon import unhandled as unhandled_module
from scoop_outbox.daemon.counters import OTHER, TOPICS
from scoop_outbox.daemon.daemons import Daemons
from scoop_outbox.daemon.monitoring.metrics import exposition
from scoop_outbox.daemon.monitoring.snapshot import Snapshot
from scoop_outbox.daemon.unhandled import UnhandledLaunches
from tests.integration.relaying import ask, left

LONG = 30


@pytest.fixture
def app(database_url: str) -> Iterator[Scoop]:
    app = Scoop("shop", database=database_url)
    yield app
    app.close_sync()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "topic without a subscription" in record.getMessage()]


@pytest.mark.parametrize("colour", ["coroutine", "plain"])
async def test_q71_a_step_that_launches_where_nobody_listens_goes_on(
    app: Scoop, caplog: pytest.LogCaptureFixture, colour: str
) -> None:
    caplog.set_level(logging.INFO)

    def launch(scope: Scope) -> None:
        scope.launch("nowhere", 1)
        scope.launch("somewhere", 2)
        scope.launch("nowhere", 3)
        scope.launch_on_global_scope("elsewhere", 4)

    async def coroutine(scope: Scope, message: Message) -> None:
        launch(scope)

    def plain(scope: Scope, message: Message) -> None:
        launch(scope)

    order = app.saga("order", on="orders")
    order.add_step("launch", coroutine if colour == "coroutine" else plain)
    order.add_step("go on", lambda scope, message: None)
    app.saga("other", on="somewhere").add_step("only", lambda scope, message: None)
    async with app.running() as running:
        for number in range(3):
            await (await app.launch("orders", number)).wait(LONG)
        assert app.unhandled == running.unhandled == {"nowhere": 6, "elsewhere": 3}
        _, text = exposition(running, Snapshot(), "")
    assert b'scoop_outbox_unhandled_launches_total{topic="nowhere"} 6.0' in text
    assert sorted(one.split(": its")[0] for one in told(caplog)) == [
        "launch: topic without a subscription (service 'shop', topic 'elsewhere'",
        "launch: topic without a subscription (service 'shop', topic 'nowhere'",
    ]


async def test_q71_from_outside(app: Scoop, database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    app.saga("order", on="orders").add_step("only", lambda scope, message: None)
    caplog.set_level(logging.INFO, "scoop_outbox.daemon.unhandled")
    await app.launch("nowhere", 1)
    await app.launch("orders", 1)
    await asyncio.to_thread(app.launch_sync, "nowhere", 2)
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await app.launch("nowhere", 3, session=connection)
        await app.launch("joined", 3, session=connection)
    engine = sa.create_engine(sa.make_url(database_url).set(drivername="postgresql+psycopg"))
    with Session(engine) as session:
        app.launch_sync("nowhere", 4, session=session)
        app.launch_sync("orders", 4, session=session)
        session.commit()
    engine.dispose()
    assert app.unhandled == {"nowhere": 4, "joined": 1}
    assert [record.levelname for record in caplog.records] == ["INFO"] * 2
    assert [one.split(": its")[0] for one in told(caplog)] == [
        "launch: topic without a subscription (service 'shop', topic 'nowhere'",
        "launch: topic without a subscription (service 'shop', topic 'joined'",
    ]
    await app.close()


def test_q71_a_topic_is_told_once_in_a_process_and_of_many_topics_nothing_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(unhandled_module, "TOLD", TOPICS + 50)
    launches = UnhandledLaunches()
    for _ in range(2):
        for number in range(TOPICS + 100):
            launches.note([f"user-{number}"], "shop", via_broker=False)
    assert len(told(caplog)) == TOPICS + 50
    assert [one.getMessage() for one in caplog.records if one.getMessage() not in told(caplog)] == [
        f"launch: too many topics without a subscription, no more are logged ({TOPICS + 50} were)"
    ]
    assert len(launches.counts) == TOPICS + 1
    assert launches.counts[OTHER] == 200


def test_q71_with_a_broker_it_is_said_that_others_may_listen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    UnhandledLaunches().note(["orders"], "shop", via_broker=True)
    ((level, text),) = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert level == "INFO"
    assert "'orders'" in text
    assert "'shop'" in text
    assert "are published" in text


def test_a_process_that_has_not_started_yet_has_no_metrics_of_launches() -> None:
    nothing: Any = Daemons(None, None, None)
    assert nothing.unhandled == {}


@dataclass(frozen=True)
class Part:
    number: int


DEMANDS: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "anybody, and nobody is there": ("nowhere", {"require_handlers": True}, False),
    "anybody, and somebody is there": ("parts", {"require_handlers": True}, True),
    "a saga that is there": ("parts", {"handled_by": ["make"]}, True),
    "one that is there, and one that is not": ("parts", {"handled_by": ["make", "pack"]}, False),
    "one that listens elsewhere": ("orders", {"handled_by": ["make"]}, False),
    "a topic that demands it": (Topic("nowhere", Part, require_handlers=True), {}, False),
    "a topic that demands a saga": (Topic("parts", Part, handled_by=["make"]), {}, True),
    "a topic that demands another one": (Topic("parts", Part, handled_by=["pack"]), {}, False),
    "a topic and a launch that demand": (Topic("parts", Part, handled_by=["make"]), {"handled_by": ["pack"]}, False),
}


def with_makers(app: Scoop) -> None:
    app.saga("make", on="parts").add_step("only", lambda scope, message: None)


@pytest.mark.parametrize("demand", DEMANDS)
@pytest.mark.parametrize("colour", ["coroutine", "plain"])
async def test_q71_a_launch_may_demand_its_handlers_or_its_step_has_failed(
    app: Scoop, database_url: str, colour: str, demand: str
) -> None:
    topic, demanded, fulfilled = DEMANDS[demand]
    with_makers(app)
    with psycopg.connect(database_url) as connection:
        connection.execute("create table effect (attempt integer)")

    async def coroutine(scope: Scope, message: Message) -> None:
        await scope.connection.execute("insert into public.effect values (%s)", [scope.attempt])
        scope.launch(topic, Part(1), **demanded)

    def plain(scope: Scope, message: Message) -> None:
        scope.connection.execute("insert into public.effect values (%s)", [scope.attempt])
        scope.launch_on_global_scope(topic, Part(1), **demanded)

    order = app.saga("order", on="orders-of-parts")
    order.step("launch", retry=Retry(attempts=2, backoff=0.01))(coroutine if colour == "coroutine" else plain)
    async with app.running():
        handle = await app.launch("orders-of-parts", 1)
        if fulfilled:
            await handle.wait(LONG)
        else:
            with pytest.raises(DistributedError, match="subscribed to topic"):
                await handle.wait(LONG)
        states = [run.state.value for run in (await app.status(handle.id)).runs if run.saga == "order"]
    assert states == ["committed" if fulfilled else "rolled_back"]
    assert ask(database_url, "select attempt from public.effect") == ([(0,)] if fulfilled else [])


@pytest.mark.parametrize("demand", DEMANDS)
async def test_q71_a_launch_from_outside_may_demand_its_handlers(app: Scoop, database_url: str, demand: str) -> None:
    topic, demanded, fulfilled = DEMANDS[demand]
    with_makers(app)

    async def joined() -> None:
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await app.launch(topic, Part(1), session=connection, **demanded)

    def joined_sync() -> None:
        with psycopg.connect(database_url) as connection:
            app.launch_sync(topic, Part(1), session=connection, **demanded)

    ways: list[Callable[[], Awaitable[Any]]] = [
        lambda: app.launch(topic, Part(1), **demanded),
        lambda: asyncio.to_thread(lambda: app.launch_sync(topic, Part(1), **demanded)),
        joined,
        lambda: asyncio.to_thread(joined_sync),
    ]
    for way in ways:
        if fulfilled:
            await way()
        else:
            with pytest.raises(UnhandledMessage, match="nothing was launched"):
                await way()
    assert left(database_url) == (len(ways) if fulfilled else 0)
    await app.close()


@pytest.mark.parametrize("handled_by", ["make", [""], [1]])
def test_q71_what_is_no_list_of_sagas_is_refused(app: Scoop, handled_by: Any) -> None:
    with pytest.raises(DefinitionError):
        app.launch_sync("parts", 1, handled_by=handled_by)
    with pytest.raises(DefinitionError):
        Topic("parts", Part, handled_by=handled_by)


def test_q71_sagas_can_be_named_by_themselves(app: Scoop) -> None:
    with_makers(app)
    app.launch_sync("parts", 1, handled_by=[app.sagas["make"]])
    assert Topic("parts", Part, handled_by=[app.sagas["make"]]).handled_by == ("make",)


async def test_q5_q71_the_failure_that_a_handler_was_called_for_stays_the_root(app: Scoop) -> None:
    saga = app.saga("order", on="orders")

    async def handle(scope: Scope, message: Message, error: Exception) -> None:
        scope.launch("nowhere", {}, require_handlers=True)

    def launch(scope: Scope, message: Message) -> None:
        scope.launch("payments", {})

    def fail(scope: Scope, message: Message) -> None:
        raise ValueError("card refused")

    saga.add_step("pay", launch, on_child_failure=handle)
    app.saga("payment", on="payments").add_step("pay", fail)
    async with app.running():
        with pytest.raises(DistributedError) as raised:
            await (await app.launch("orders", {})).wait(LONG)
    causes: list[str] = []
    error: BaseException | None = raised.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__ or error.__context__
    assert any("no saga is subscribed" in one for one in causes)
    assert "card refused" in causes[-1]
