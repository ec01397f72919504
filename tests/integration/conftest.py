"""Fixtures of these tests: a driver of either colour, by turns."""

from collections.abc import AsyncIterator

import psycopg
import pytest

from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.integration.test_drivers import Twin


@pytest.fixture
async def twin(colour: str, database_url: str) -> AsyncIterator[Twin]:
    """A driver for steps, of a `colour` that the test is parametrized with, and a table `t` of numbers."""
    with psycopg.connect(database_url) as connection:
        connection.execute("create table t (n int)")
    home = Home(database_url, DEFAULT_SCHEMA, f"test {colour}")
    twin = Twin(home, await home.connect_for_steps() if colour == "async" else home.connect_for_steps_blocking())
    yield twin
    await twin.close()
    await home.dispose()
