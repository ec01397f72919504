"""D7: points in time are compared as what they are, and not as the clocks of a session's time zone show them."""

from datetime import UTC, timedelta
from typing import Any

import psycopg
import pytest

from scoop_outbox.store.adaptation import ADAPTERS, cursor

# Clocks go back from 3 to 2 at 1:00 UTC: half past two is shown twice.
TWICE = "select '2026-10-25 00:30:00+00'::timestamptz, '2026-10-25 01:29:00+00'::timestamptz"


@pytest.fixture
def connection(database_url: str) -> Any:
    """A connection of a program whose sessions are in a zone in which clocks are put back."""
    with psycopg.connect(database_url, options="-c timezone=Europe/Berlin") as connection:
        yield connection


@pytest.mark.parametrize("binary", [True, False])
def test_d7_an_hour_that_clocks_show_twice_is_two_hours(connection: Any, binary: bool) -> None:
    with cursor(connection) as asked:
        first, second = asked.execute(TWICE, binary=binary).fetchone() or ()
    assert first < second
    assert second - first == timedelta(minutes=59)
    assert first.tzinfo is second.tzinfo is UTC


def test_d7_programs_get_theirs_as_they_expect(connection: Any) -> None:
    first, second = connection.execute(TWICE).fetchone()
    assert str(first.tzinfo) == str(second.tzinfo) == "Europe/Berlin"
    assert ADAPTERS is not connection.adapters
