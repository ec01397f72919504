"""What tests of several homes are written with."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg

from scoop_outbox import Scoop
from scoop_outbox.app import service_of
from tests.scenarios.shop import LONG, Shop
from tests.waiting import until


@asynccontextmanager
async def running(*shops: Shop) -> AsyncIterator[None]:
    """Run services, each in a home of its own, and begin when each home knows who listens in all others."""
    async with AsyncExitStack() as stack:
        for shop in shops:
            await stack.enter_async_context(shop.running())
        await until(lambda: know_each_other(*shops), LONG)
        yield


async def know_each_other(*shops: Shop) -> bool:
    """Tell whether each of these homes knows who listens in all others, and has been told that they know."""
    for shop in shops:
        known = await shop.ask(
            "select from scoop_outbox.peer p, scoop_outbox.home h "
            "where p.revision > 0 and p.confirmed = h.revision and p.name = any(%s)",
            [one.app.service for one in shops],
        )
        if len(known) < len(shops) - 1:
            return False
    return True


async def forge(app: Scoop, topic: str, body: object) -> None:
    """Write into the outbox of a home what no launch would take."""
    async with await psycopg.AsyncConnection.connect(service_of(app).home.url) as connection:
        await connection.execute(
            "insert into scoop_outbox.outbox (shard, message_id, topic, body, content_type, headers) "
            "values (0, gen_random_uuid(), %s, %s, 'application/json', '{}')",
            (topic, json.dumps(body).encode()),
        )
