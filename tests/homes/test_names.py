"""Homes have names of their own, and are where they were named."""

import uuid
from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio

from scoop_outbox import DefinitionError, Scoop
from scoop_outbox.operations.homes import Homes
from tests.scenarios.shop import Journal, Shop


@pytest_asyncio.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    """A service of one saga, in a home of a name."""
    shop = Shop(Scoop("shop", database=database_url, home="north"), Journal(), "mixed")
    shop.saga("root", "R", None)
    yield shop
    await shop.app.close()


def change(url: str, statement: str, *values: object) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(statement.encode(), values)


async def test_a_home_keeps_its_name(shop: Shop, database_url: str) -> None:
    async with shop.running():
        pass
    other = Scoop("shop", database=database_url, home="south")
    other.saga("root", on="R").add_step("0", lambda scope, message: None)
    with pytest.raises(DefinitionError, match="is the home 'north', and this process calls it 'south'"):
        async with other.running():
            pass
    unsaid = Scoop("shop", database=database_url)
    unsaid.saga("root", on="R").add_step("0", lambda scope, message: None)
    async with unsaid.running():
        pass


@pytest.mark.parametrize("name", ["a b", "größe", "x" * 101, "a/b"])
def test_a_name_that_no_topic_can_have_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match="the name of a home has 1 to 100 letters"):
        Scoop("shop", database="postgresql://localhost/shop", home=name)


async def test_a_copy_of_a_home_is_refused_until_somebody_says_that_it_has_moved(shop: Shop, database_url: str) -> None:
    async with shop.running():
        pass
    change(database_url, "update scoop_outbox.home set place = '1:1'")
    with pytest.raises(DefinitionError, match=r"is a copy of the home 'north'.*scoop-outbox home moved"):
        async with shop.running():
            pass
    with Homes(database_url) as homes:
        homes.move()
    async with shop.running():
        pass


async def test_a_name_that_another_home_has_is_refused_until_that_is_forgotten(shop: Shop, database_url: str) -> None:
    other = uuid.uuid4()
    change(
        database_url, "insert into scoop_outbox.peer (id, name, reply_to) values (%s, 'north', 'control.north')", other
    )
    with pytest.raises(DefinitionError, match=rf"another home is called 'north', too .*home forget {other}"):
        async with shop.running():
            pass
    with Homes(database_url) as homes:
        assert homes.forget("nobody") is None
        assert homes.forget(str(other)) == 0
    async with shop.running():
        pass


async def test_the_name_that_a_process_is_given_wins_over_the_one_declared(shop: Shop) -> None:
    shop.app.configure(home="south")
    async with shop.running():
        pass
    assert await shop.ask("select name from scoop_outbox.home") == [("south",)]


async def test_a_home_that_has_no_broker_says_nothing_to_others(shop: Shop) -> None:
    await shop.run("R")
    assert await shop.ask("select topic from scoop_outbox.message union all select topic from scoop_outbox.outbox") == [
        ("R",)
    ]
