"""Which statements of a callback may leave something on its connection that is dear to look for."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg._queries import PostgresQuery
from psycopg.adapt import Transformer

from scoop_outbox.store.leftovers import Watching

HARMLESS = [
    "insert into orders values (%s) on conflict (id) do nothing",
    "insert into orders values (1)\non conflict (id)\ndo update set n = 1",
    "select set_config('app.tenant', 'x', false), pg_advisory_lock(1)",
    "update listeners set prepared = true",
    "with moved as (delete from a returning *) insert into b select * from moved",
    "set search_path = x",
    "create temp table declared (n int)",
]
SUSPECT = [
    "listen news",
    "select 1; LISTEN news",
    "/* why */ prepare p as select 1",
    "Declare c cursor with hold for select 1",
    "execute p",
    "call make_trouble()",
    "do $$ begin end $$",
    "select 1;do $x$ begin end $x$",
    "DO LANGUAGE plpgsql $$ begin end $$",
    "do 'begin end'",
    "do E'begin end'",
    "do /* what */ $$ begin end $$",
]


def query(statement: str) -> PostgresQuery:
    converted = PostgresQuery(Transformer())
    converted.convert(statement.encode(), None)
    return converted


def looked(statement: str) -> Watching:
    watching = Watching()
    watching.get(query(statement))
    return watching


@pytest.mark.parametrize("statement", HARMLESS)
def test_what_leaves_nothing_rare_is_not_suspected(statement: str) -> None:
    assert not looked(statement).suspects


@pytest.mark.parametrize("statement", SUSPECT)
def test_what_may_is(statement: str) -> None:
    assert looked(statement).suspects


def test_what_psycopg_sends_by_another_way_is_suspected() -> None:
    def _declare_gen() -> Iterator[None]:
        yield

    def _execute_gen() -> Iterator[None]:
        yield

    watching = Watching()
    watching.begins(_execute_gen())
    watching.get(query("select 1"))
    watching.ends()
    assert not watching.suspects
    watching.begins(_declare_gen())
    assert watching.suspects


def test_a_cursor_that_does_not_show_what_it_sends_is_suspected() -> None:
    def _execute_gen() -> Iterator[None]:
        yield

    watching = Watching()
    watching.begins(_execute_gen())
    assert not watching.suspects
    watching.ends()
    assert watching.suspects


def test_a_statement_too_long_to_be_looked_through_is_suspected() -> None:
    assert not looked("insert into t values " + "(1)," * 1_000).suspects
    assert looked("insert into t values " + "(1)," * 10_000).suspects


def test_the_ways_that_are_known_are_psycopgs() -> None:
    """Should psycopg rename one, everything is suspected: correct, and slower."""
    assert callable(psycopg.Cursor._execute_gen)
    assert callable(psycopg.Cursor._executemany_gen_pipeline)
    assert callable(psycopg.Cursor._executemany_gen_no_pipeline)
    assert callable(psycopg.Transaction._enter_gen)
    assert callable(psycopg.Transaction._exit_gen)
