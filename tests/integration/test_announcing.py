"""A service is made known when it can receive, and not before; what was said of its broker is not unsaid."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from scoop_outbox import BrokerError, DefinitionError, Scoop
from scoop_outbox.app import service_of
from scoop_outbox.daemon.daemons import Daemons
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.fake_broker import FakeBroker, message
from tests.waiting import until


class Publishing(FakeBroker):
    """A broker that also takes what is published, or says why it never will."""

    def __init__(self, refuses: str | None = None) -> None:
        super().__init__()
        self.refuses = refuses

    async def publisher(self, name: str) -> Any:
        return self

    async def publish(self, batch: Any) -> Any:
        raise AssertionError("nothing is launched here")

    async def probe(self) -> str | None:
        if self.refuses is not None:
            raise BrokerError(self.refuses)
        return None

    async def close(self) -> None: ...


def ask(url: str, question: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
        return connection.execute(question.encode(), values).fetchall()


def subscribed(url: str) -> list[tuple[Any, ...]]:
    return ask(url, "select service, saga, via_broker from subscription order by service, saga")


def service(
    url: str,
    broker: FakeBroker | None,
    name: str = "shop",
    sagas: tuple[str, ...] = ("order",),
    said: str | None = None,
) -> Scoop:
    app = Scoop(name, database=url, broker=said)
    for saga in sagas:
        app.saga(saga, on="orders").add_step("work", lambda scope, message: None)
    service_of(app).servers.broker = broker
    if broker is not None:
        service_of(app).servers._broker_url = "fake://"
    return app


async def announced_by_running(app: Scoop) -> None:
    async with app.running(relay=False):
        pass


async def announced(app: Scoop) -> None:
    try:
        await app.announce()
    finally:
        await app.close()


async def announced_without_a_loop(app: Scoop) -> None:
    try:
        await asyncio.to_thread(app.announce_sync)
    finally:
        app.close_sync()


async def announced_blockingly(app: Scoop) -> None:
    try:
        app.announce_sync()
    finally:
        app.close_sync()


WAYS = [announced_by_running, announced, announced_without_a_loop, announced_blockingly]


@pytest.mark.parametrize("way", WAYS)
async def test_q15_a_service_is_announced_after_its_broker_has_said_yes(
    database_url: str, way: Callable[[Scoop], Any]
) -> None:
    broker = Publishing()
    seen: list[list[tuple[Any, ...]]] = []
    prepare = broker.prepare

    async def look(subscription: Any) -> str | None:
        seen.append(subscribed(database_url))
        return await prepare(subscription)

    broker.prepare = look  # type: ignore[method-assign]
    await way(service(database_url, broker))
    assert seen[0] == []
    assert subscribed(database_url) == [("shop", "order", True)]


@pytest.mark.parametrize("way", WAYS)
async def test_a_start_that_the_broker_refuses_leaves_no_subscription(
    database_url: str, way: Callable[[Scoop], Any]
) -> None:
    broker = Publishing()
    broker.refusal = BrokerError("there is no queue")
    with pytest.raises(BrokerError, match="there is no queue"):
        await way(service(database_url, broker))
    assert subscribed(database_url) == []


async def test_a_start_whose_relay_is_refused_leaves_no_subscription(database_url: str) -> None:
    app = service(database_url, Publishing("wrong password"))
    with pytest.raises(BrokerError, match="wrong password"):
        async with app.running():
            pass
    assert subscribed(database_url) == []


@pytest.mark.parametrize("way", WAYS[1:])
async def test_what_cannot_be_asked_is_not_announced(database_url: str, way: Callable[[Scoop], Any]) -> None:
    broker = Publishing()
    broker.reachable = False
    with pytest.raises(BrokerError, match=r"its broker does not answer \(it is down\)"):
        await way(service(database_url, broker))
    assert subscribed(database_url) == []


async def test_a_service_whose_broker_is_down_is_announced_when_it_is_there_and_then_takes_in(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Publishing()
    broker.reachable = False
    broker.put(message(1))
    app = service(database_url, broker)
    with caplog.at_level(logging.WARNING):
        async with app.running(relay=False) as running:
            await until(lambda: intake_of(running).problem is not None)
            assert subscribed(database_url) == []
            assert broker.consumers == []
            broker.reachable = True
            await until(lambda: subscribed(database_url) == [("shop", "order", True)])
            await until(lambda: ask(database_url, "select state from run") == [("committed",)])
            await until(lambda: intake_of(running).problem is None)
    said = "intake: cannot receive (service shop: not announced yet, its broker does not answer: it is down)"
    assert caplog.messages.count(said) == 1


async def test_a_service_that_was_announced_before_takes_in_although_its_broker_cannot_be_asked(
    database_url: str,
) -> None:
    broker = Publishing()
    await announced(service(database_url, broker))
    broker.reachable = False
    app = service(database_url, broker)
    async with app.running(relay=False):
        await until(lambda: broker.consumers)
        broker.put(message(1))
        await until(lambda: ask(database_url, "select state from run") == [("committed",)])


def intake_of(running: Daemons) -> Any:
    assert running.intake is not None
    return running.intake


@pytest.mark.parametrize("blocking", [False, True])
async def test_launching_over_a_broker_asks_it_nothing_and_announces_nothing(database_url: str, blocking: bool) -> None:
    broker = Publishing()
    broker.refusal = BrokerError("nobody asks")
    app = service(database_url, broker)
    if blocking:
        handle = await asyncio.to_thread(app.launch_sync, "orders", 1)
        await asyncio.to_thread(app.close_sync)
    else:
        handle = await app.launch("orders", 1)
    assert (broker.prepared, subscribed(database_url)) == (0, [])
    assert ask(database_url, "select topic from outbox") == [("orders",)]
    # It knows all the same that its own service will handle that.
    with pytest.raises(TimeoutError):
        await handle.wait(0.2)
    assert ask(database_url, "select services, sagas from expected_root") == [(["shop"], ["order"])]
    elsewhere = await app.launch("elsewhere", 1)
    await elsewhere.wait(5)
    await app.close()


async def test_what_was_launched_before_the_service_was_announced_ends_when_it_is_handled(database_url: str) -> None:
    broker = Publishing()
    app = service(database_url, broker, sagas=("a", "b"))
    handle = await app.launch("orders", 1)
    broker.put(message(1, message_id=handle.id))
    async with service(database_url, broker, sagas=("a", "b")).running(relay=False):
        await handle.wait(20)
    assert ask(database_url, "select saga, state from run order by saga") == [("a", "committed"), ("b", "committed")]
    # It sees that the service is known, and writes down no more than everybody does.
    again = await app.launch("orders", 2)
    assert ask(database_url, "select sagas from expected_root where message_id = %s", again.id) == [(["a", "b"],)]
    assert service_of(app).announcer.done
    await app.close()


async def test_launching_with_the_built_in_broker_announces(database_url: str) -> None:
    app = service(database_url, None)
    await app.launch("orders", 1)
    await app.close()
    assert subscribed(database_url) == [("shop", "order", False)]


REFUSED = {
    "its own relay": ("shop", {"worker": False}),
    "its own worker": ("shop", {"relay": False}),
    "both": ("shop", {}),
    "the relay of another service": ("stranger", {}),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_a_process_without_the_broker_that_somebody_has_is_refused(database_url: str, what: str) -> None:
    await announced(service(database_url, Publishing()))
    name, options = REFUSED[what]
    with pytest.raises(
        BrokerError, match=r"Configure the broker .* and set the broker to postgresql:// in every process"
    ):
        async with service(database_url, None, name).running(**options):
            pass
    assert subscribed(database_url) == [("shop", "order", True)]


@pytest.mark.parametrize("way", WAYS[1:])
async def test_announcing_without_the_broker_is_refused(database_url: str, way: Callable[[Scoop], Any]) -> None:
    await announced(service(database_url, Publishing()))
    with pytest.raises(BrokerError, match="service shop receives from a broker, and this process has none"):
        await way(service(database_url, None, sagas=("order", "new")))
    assert subscribed(database_url) == [("shop", "order", True)]


async def test_launching_without_the_broker_leaves_what_is_known_of_it(database_url: str) -> None:
    await announced(service(database_url, Publishing()))
    app = service(database_url, None, sagas=("order", "new"))
    handle = await app.launch("orders", 1)
    await app.close()
    assert subscribed(database_url) == [("shop", "order", True)]
    # A broker carries it, though this process does not know which.
    assert ask(database_url, "select sagas from expected_root where message_id = %s", handle.id) == [
        (["order", "new"],)
    ]


async def test_moving_away_from_a_broker_has_to_be_said(database_url: str) -> None:
    await announced(service(database_url, Publishing()))
    app = service(database_url, None, said="postgresql://")
    async with app.running():
        await (await app.launch("orders", 1)).wait(20)
    # Not even so is it unsaid: the next process that says nothing is refused.
    assert subscribed(database_url) == [("shop", "order", True)]
    with pytest.raises(BrokerError):
        async with service(database_url, None).running():
            pass


async def test_a_worker_of_a_service_that_has_no_broker_may_run_beside_one_that_has(database_url: str) -> None:
    await announced(service(database_url, Publishing()))
    async with service(database_url, None, "stranger").running(relay=False):
        pass
    assert subscribed(database_url) == [("shop", "order", True), ("stranger", "order", False)]


@pytest.mark.parametrize(
    "formerly, wrong",
    [
        (["order"], "leave its own name out"),
        ("old", "write formerly="),
        ([""], "saga"),
        (["x" * 10_000], "saga"),
        (["other"], "saga 'other'"),
        (["taken"], "only one of them can take it over"),
    ],
)
def test_q68_former_names_that_cannot_be(formerly: Any, wrong: str) -> None:
    app = Scoop("shop", database="postgresql://nowhere/db")
    app.saga("other", on="t", formerly=["taken"]).add_step("only", lambda scope, message: None)

    def declare() -> None:
        app.saga("order", on="t", formerly=formerly).add_step("only", lambda scope, message: None)
        service_of(app).check()

    with pytest.raises(DefinitionError, match=wrong):
        declare()
