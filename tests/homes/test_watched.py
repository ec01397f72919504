"""Metrics and `/readyz` tell how cooperation with other homes goes."""

import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scoop_outbox import Running, Scoop
from scoop_outbox.app import service_of
from scoop_outbox.daemon.monitoring import health as health_module
from scoop_outbox.wire.control import Kind, Sender, body_of
from tests.fake_broker import message
from tests.integration.seeing import ask
from tests.integration.test_health import Verdicts
from tests.waiting import until

STOCK = uuid.UUID(int=7)


@pytest.fixture(autouse=True)
def always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "_FRESH", 0.0)


class Channel(Verdicts):
    """A broker whose only consumer is that of the home's control channel."""

    said = 0

    def say(self, kind: Kind, *, ahead: float | None = 0.0, name: str = "stock", **members: Any) -> None:
        """Let another home say something, by a clock that is so many seconds ahead; None says nothing of the time."""
        at = None if ahead is None else datetime.now(UTC) + timedelta(seconds=ahead)
        self.body(body_of(Sender(STOCK, name, f"scoop.control.{name}", at), kind, members))

    def body(self, body: bytes) -> None:
        """Let something come."""
        self.said += 1
        self.put(
            message(self.said, topic="scoop.control.orders", body=body, message_id=uuid.uuid4(), scoop_home=str(STOCK))
        )


def listening(*topics: str, revision: int = 1) -> dict[str, Any]:
    """What `subscriptions` says of a saga that listens on each of these topics."""
    listed = [{"topic": topic, "service": "stock", "saga": f"saga {topic}"} for topic in topics]
    return {"revision": revision, "subscriptions": listed, "known": {}}


@asynccontextmanager
async def told(database_url: str) -> AsyncIterator[tuple[Channel, Running]]:
    """The home `orders`, which has no sagas, and what it is told."""
    app = Scoop("orders", database=database_url, home="orders")
    channel = Channel()
    service_of(app).servers.broker = channel
    async with app.running() as found:
        yield channel, found


async def metric(found: Running, name: str) -> float | None:
    """The value of a metric; None if there is none."""
    value = re.search(rf"^scoop_outbox_{re.escape(name)} (\S+)$", await found.metrics(), re.MULTILINE)
    return None if value is None else float(value[1])


async def is_so(found: Running, name: str, expected: float) -> bool:
    return await metric(found, name) == expected


async def test_numbers_of_other_homes(database_url: str) -> None:
    async with told(database_url) as (channel, found):
        channel.say(Kind.SUBSCRIPTIONS, ahead=60, **listening("reserve"))
        await until(lambda: is_so(found, "home_unconfirmed", 1))
        assert await metric(found, "control_taken_in_total") == 1
        assert -60 < (await metric(found, 'home_lag_seconds{home="stock"}') or 0) < -20
        assert 0 < (await metric(found, 'home_heard_seconds{home="stock"}') or 0) < 40
        assert await metric(found, 'home_children_open{home="stock"}') == 0
        channel.say(Kind.CONFIRMED, revision=1)
        await until(lambda: is_so(found, "home_unconfirmed", 0))
        for number, home in enumerate((STOCK, STOCK, None, uuid.UUID(int=8))):
            ask(
                database_url,
                "insert into child (message_id, service, saga, run_id, seq, ordinal, home) "
                "values (%s, '', '', %s, 1, 1, %s)",
                *(uuid.UUID(int=number), uuid.uuid4(), home),
            )
        assert await metric(found, 'home_children_open{home="stock"}') == 2
        assert await metric(found, f'home_children_open{{home="{uuid.UUID(int=8)}"}}') == 1
        assert await metric(found, f'home_heard_seconds{{home="{uuid.UUID(int=8)}"}}') is None


async def test_homes_of_one_name_are_one_number(database_url: str) -> None:
    """A label that came twice would keep all metrics of the process from being read."""
    async with told(database_url) as (_, found):
        for number, seconds in ((7, 10), (8, 500)):
            ask(
                database_url,
                "insert into peer (id, name, reply_to, heard_at, lag) values "
                "(%s, 'stock', 'c', clock_timestamp() - make_interval(secs => %s), interval '1 s')",
                *(uuid.UUID(int=number), seconds),
            )
        assert (await found.metrics()).count('scoop_outbox_home_heard_seconds{home="stock"}') == 1
        assert 500 <= (await metric(found, 'home_heard_seconds{home="stock"}') or 0) < 540
        assert await metric(found, 'home_lag_seconds{home="stock"}') == 1


async def test_a_home_that_does_not_say_when_has_no_lag(database_url: str) -> None:
    async with told(database_url) as (channel, found):
        channel.say(Kind.SUBSCRIPTIONS, ahead=None, **listening("reserve"))
        await until(lambda: is_so(found, "control_taken_in_total", 1))
        assert await metric(found, 'home_lag_seconds{home="stock"}') is None
        channel.body(b"{")
        await until(lambda: is_so(found, 'dead_letters_total{origin="control",reason="unusable"}', 1))


async def test_a_problem_of_the_control_channel(database_url: str) -> None:
    async with told(database_url) as (channel, found):
        assert await found.problems() == {}
        assert await metric(found, "control_problem") == 0
        await until(lambda: channel.consumers)
        channel.consumers[0].problem = "not allowed"
        assert await found.problems() == {"control": "not allowed"}
        assert await metric(found, "control_problem") == 1


async def test_a_home_without_a_name_is_not_asked(database_url: str) -> None:
    app = Scoop("orders", database=database_url)
    ask(database_url, "insert into peer (id, name, reply_to) values (%s, 'stock', 'control.stock')", STOCK)
    async with app.running() as found:
        assert "home_" not in await found.metrics()
