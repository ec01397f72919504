"""Names are arbitrary text: services and sagas that are alike when they are joined are others all the same."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scoop_outbox import RunState, Scoop
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, launches

ALIKE = [
    (("a\nb", "c"), ("a", "b\nc")),
    (("a\n", "b"), ("a", "\nb")),
    (("ab", "c"), ("a", "bc")),
    (("1\na", "b"), ("1", "a\nb")),
    (("a", "1\nb"), ("a1", "\nb")),
    (("a b", "c"), ("a", "b c")),
    (("a\\n", "b"), ("a\n", "b")),
]


@pytest.mark.builtin("RabbitMQ refuses queues of these names")
@pytest.mark.parametrize("colour", ["async", "blocking"])
@pytest.mark.parametrize("one, other", ALIKE)
async def test_q41_runs_of_services_and_sagas_that_are_alike_are_others(
    make_shop: MakeShop, one: tuple[str, str], other: tuple[str, str], colour: str
) -> None:
    shops = [make_shop(colour, service) for service, _ in (one, other)]
    for shop, (_, saga) in zip(shops, (one, other), strict=True):
        shop.saga(saga, "R", None)
    outside = make_shop(colour, "outside")
    outside.saga("parent", "P", launches("R"))

    async with AsyncExitStack() as stack:
        for shop in (*shops, outside):
            await stack.enter_async_context(shop.running())
        alone = await outside.app.launch("R", None)
        await alone.wait(LONG)
        above = await outside.app.launch("P", None)
        await above.wait(LONG)
        runs = [run for handle in (alone, above) for run in (await outside.status(handle)).runs if run.topic == "R"]

    assert sorted((run.service, run.saga) for run in runs) == sorted([one, other] * 2)
    assert {run.state for run in runs} == {RunState.COMMITTED}
    assert len({run.id for run in runs}) == 4


@pytest.mark.parametrize("one, other", ALIKE)
async def test_q41_ordered_sagas_that_are_alike_do_not_wait_for_each_other(
    database_url: str, one: tuple[str, str], other: tuple[str, str]
) -> None:
    begun: list[str] = []
    both = asyncio.Event()

    async def meets(scope: Any, _: Any) -> None:
        begun.append(scope.saga)
        if len(begun) == 2:
            both.set()
        await both.wait()

    apps = [Scoop(service, database=database_url) for service, _ in (one, other)]
    for app, (_, saga) in zip(apps, (one, other), strict=True):
        app.saga(saga, on="R", ordered="key").add_step("meet", meets)
    async with AsyncExitStack() as stack:
        for app in apps:
            await stack.enter_async_context(app.running())
        handle = await apps[0].launch("R", None, key="k")
        await handle.wait(LONG)
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select count(*), count(distinct lane) from scoop_outbox.run").fetchone() == (2, 2)


def test_q41_a_run_has_the_id_that_the_protocol_documents(database_url: str) -> None:
    query = """
        select id = (left(message_id::text, 19) || '8'
                     || left(md5(message_id || e'\\n' || length(service) || e'\\n' || service || saga), 15))::uuid
        from scoop_outbox.run
    """
    app = Scoop("größe\n", database=database_url)
    app.saga("\n 1", on="R").add_step("only", lambda *_: None)
    app.launch_sync("R", str(uuid4()))

    async def take_in() -> None:
        async with app.running():
            await app.launch("R", None)
            handle = await app.launch("R", None)
            await handle.wait(LONG)

    asyncio.run(take_in())
    with psycopg.connect(database_url) as connection:
        assert {found for (found,) in connection.execute(query)} == {True}
