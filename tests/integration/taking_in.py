"""Services that take in from a broker made for tests."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from scoop_outbox import Scoop, Topic
from scoop_outbox.broker.protocol import Subscription
from scoop_outbox.daemon.intake.intake import Intake
from scoop_outbox.daemon.intake.service import service_intake
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.fake_broker import FakeBroker
from tests.waiting import until


@dataclass(frozen=True)
class Order:
    sku: str


class Silent:
    def outbox(self) -> None: ...
    def ended(self, message_id: uuid.UUID) -> None: ...
    def mail(self, service: str, saga: str, version: str, run_id: uuid.UUID, delay: float) -> None: ...


def ask(url: str, question: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
        return connection.execute(question.encode(), values).fetchall()


def service(url: str, name: str = "shop", *, on: str | Topic[Any] = "orders", sagas: Sequence[str] = ("a",)) -> Scoop:
    """A service whose sagas are known."""
    app = Scoop(name, database=url)
    for saga in sagas:
        app.saga(saga, on=on).add_step("only", lambda scope, message: None)
    app.announce_sync()
    app.close_sync()
    return app


@asynccontextmanager
async def taking_in(url: str, broker: FakeBroker, app: Scoop, **options: Any) -> AsyncIterator[Intake]:
    home = Home(url, DEFAULT_SCHEMA, "intake test")
    subscription = Subscription(app.service, app.service, tuple(saga.topic for saga in app.sagas.values()))
    intake = service_intake(home, broker, subscription, app.sagas, Silent(), **options)
    task = asyncio.create_task(intake.run())
    try:
        yield intake
    finally:
        intake.stop()
        async with asyncio.timeout(10):
            await task
        await home.dispose()


async def take_all_in(url: str, broker: FakeBroker, app: Scoop, **options: Any) -> Intake:
    count = sum(map(len, broker.batches))
    async with taking_in(url, broker, app, **options) as intake:
        await until(lambda: len(broker.acknowledged) >= count)
    return intake


def runs(url: str) -> Counter[tuple[str, str, bytes]]:
    """How many runs each saga has for a body."""
    return Counter(ask(url, "select r.service, r.saga, m.body from run r join message m on m.id = r.message_id"))


def once(numbers: Sequence[int], of: str = "shop", *sagas: str) -> dict[tuple[str, str, bytes], int]:
    return {(of, saga, str(number).encode()): 1 for number in numbers for saga in sagas or ("a",)}


def kill(url: str) -> None:
    """End the connections of intake."""
    ask(url, "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'intake test'")


def launch_below(scope: Any, _: Any) -> None:
    scope.launch("below", 1)
