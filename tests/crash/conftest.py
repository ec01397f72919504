"""Processes, and the table of effects that they write to."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.crash.flow import EFFECT_TABLE
from tests.crash.history import code_before_homes
from tests.crash.processes import Fleet, with_tails


@pytest.fixture
def effects(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit, to a database with the table of effects."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(EFFECT_TABLE)
        yield connection


@pytest.fixture
def fleet(database_url: str, effects: psycopg.Connection[Any], tmp_path: Path) -> Iterator[Fleet]:
    """Processes that are gone after the test."""
    fleet = Fleet(database_url, tmp_path)
    try:
        yield fleet
    finally:
        fleet.stop()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs the code of before where there is no history: a copy of the files, or a shallow clone.

    pytest counts it as deselected.
    """
    needing = [item for item in items if "older" in getattr(item, "fixturenames", ())]
    if needing and not code_before_homes():
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the processes of a test that fails."""
    return with_tails(item, (yield))
