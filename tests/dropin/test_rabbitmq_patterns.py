"""Sagas that listen with wildcards: a step waits for them as for any other, whatever the topic it launched on."""

import asyncio
import traceback
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from scoop_outbox import DistributedError, Message, RunState, Scoop, Scope
from tests.dropin.listener import Listener
from tests.rabbitmq.trial import Trial, name, publish_plainly
from tests.waiting import until


class Shop:
    """A service that launches on a topic and goes on when all is done, and one that listens with wildcards."""

    def __init__(self, database: str, rabbit: Trial, launched: str, pattern: str, **listening: object) -> None:
        self.did: list[tuple[str, str]] = []
        self.fails = False
        self.reserving = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.begun = name()
        self._launched = launched
        self.orders = Scoop(name("orders"), database=database, broker=rabbit.url)
        self.stock = Scoop(name("stock"), database=database, broker=rabbit.url, broker_settings=dict(listening))
        ordering = self.orders.saga("order", on=self.begun)
        ordering.add_step("launch", self._launch)
        ordering.add_step("after", lambda scope, message: self.did.append(("after", message.topic)))
        self.stock.saga("reserve", on=pattern, ordered="key").add_step("reserve", self._reserve)

    def _launch(self, scope: Scope, message: Message) -> None:
        scope.launch(self._launched, message.payload, key="k")

    async def _reserve(self, scope: Scope, message: Message) -> None:
        self.reserving.set()
        await self.may_go_on.wait()
        self.did.append(("reserved", message.topic))
        if self.fails:
            raise ValueError("out of stock")

    async def start(self, stack: AsyncExitStack) -> None:
        for app in (self.stock, self.orders):
            await app.apply_topology(self.begun)
            await stack.enter_async_context(app.running())


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.mark.parametrize("launched, pattern", [("{}.created.eu", "{}.*.eu"), ("amq.topic/{}.created", "{}.#")])
async def test_the_next_step_waits_for_a_saga_with_wildcards(
    rabbit: Trial, database_url: str, stack: AsyncExitStack, launched: str, pattern: str
) -> None:
    stem = name()
    shop = Shop(database_url, rabbit, launched.format(stem), pattern.format(stem))
    await shop.start(stack)

    handle = await shop.orders.launch(shop.begun, {"sku": "a"})
    await until(shop.reserving.is_set, 30)
    assert shop.did == []
    shop.may_go_on.set()
    await handle.wait(timeout=30)

    # The topic in its shortest form, however the launcher wrote it.
    assert shop.did == [("reserved", launched.format(stem).removeprefix("amq.topic/")), ("after", shop.begun)]


async def test_its_failure_goes_to_the_parent(rabbit: Trial, database_url: str, stack: AsyncExitStack) -> None:
    stem = name()
    shop = Shop(database_url, rabbit, f"{stem}.created", f"{stem}.*")
    shop.fails = True
    shop.may_go_on.set()
    await shop.start(stack)

    handle = await shop.orders.launch(shop.begun, {"sku": "a"})

    with pytest.raises(DistributedError) as raised:
        await handle.wait(timeout=30)
    assert "out of stock" in "".join(traceback.format_exception(raised.value))
    status = await shop.orders.status(handle.id)
    assert [run.state for run in status.runs] == [RunState.ROLLED_BACK] * 2


async def test_a_root_with_wildcards_is_waited_for(rabbit: Trial, database_url: str, stack: AsyncExitStack) -> None:
    stem = name()
    shop = Shop(database_url, rabbit, f"{stem}.created", f"{stem}.*")
    await shop.start(stack)

    handle = await shop.orders.launch(f"{stem}.changed", {"sku": "a"})
    waiting = asyncio.create_task(handle.wait(timeout=30))
    await until(shop.reserving.is_set, 30)
    assert not waiting.done()
    shop.may_go_on.set()
    await waiting

    assert shop.did == [("reserved", f"{stem}.changed")]


async def test_a_saga_that_has_changed_its_topic_is_one_child(
    rabbit: Trial, database_url: str, stack: AsyncExitStack
) -> None:
    stem = name()
    shop = Shop(database_url, rabbit, f"{stem}.created", f"{stem}.*")
    before = Scoop(shop.stock.service, database=database_url, broker=rabbit.url)
    before.saga("reserve", on=f"{stem}.created").add_step("reserve", lambda scope, message: None)
    await before.apply_topology()
    await before.announce()
    await before.close()
    shop.may_go_on.set()
    await shop.start(stack)

    await (await shop.orders.launch(shop.begun, {"sku": "a"})).wait(timeout=30)

    assert shop.did == [("reserved", f"{stem}.created"), ("after", shop.begun)]


async def test_services_of_one_database_see_one_topic(rabbit: Trial, database_url: str) -> None:
    """What a handler is told does not depend on which of the services was the first to take the message in."""
    stem = name()
    exact = Listener(database_url, rabbit.url, name("exact"), f"{stem}.created")
    loose = Listener(database_url, rabbit.url, name("loose"), f"{stem}.*")
    for service in (exact, loose):
        await service.app.apply_topology()
    await publish_plainly(rabbit, "amq.topic", f"{stem}.created", b"{}", message_id="m-1")

    async with exact.running(), loose.running():
        seen = [*await exact.sees(1), *await loose.sees(1)]

    assert [(message.topic, dict(message.headers)) for message in seen] == [
        (f"{stem}.created", {"amqp-message-id": "m-1"})
    ] * 2
