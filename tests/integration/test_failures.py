"""Failures as they are kept: written once, read with what lies below them, and known for a while."""

import json
from collections.abc import AsyncIterator, Mapping
from uuid import UUID, uuid4

import psycopg
import pytest
import pytest_asyncio

from scoop_outbox import Failure
from scoop_outbox.core.plans import failures as kept
from scoop_outbox.core.plans.failures import Writing, id_of, recall
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, ask
from scoop_outbox.failure import DEPTH_LIMIT, SIZE_LIMIT
from scoop_outbox.store.failure_cache import KnownFailures
from scoop_outbox.store.home import Home
from scoop_outbox.store.schema import DEFAULT_SCHEMA


@pytest_asyncio.fixture
async def home(database_url: str) -> AsyncIterator[Home]:
    home = Home(database_url, DEFAULT_SCHEMA, "test")
    yield home
    await home.dispose()


def write(failure: Failure, known: KnownFailures) -> Plan[Failure]:
    writing = Writing(known)
    named = writing.name(failure)
    yield from ask(BEGIN, *writing.statements(), COMMIT)
    return named


async def read(home: Home, *ids: UUID | None) -> Mapping[UUID, Failure]:
    """What a process reads that knows nothing."""
    async with home.driver() as driver:
        return await driver.run(recall(ids, KnownFailures()))


def depth_of(failure: Failure) -> int:
    return 1 + max(map(depth_of, failure.causes), default=0)


async def test_what_was_written_is_read(home: Home) -> None:
    below = Failure("Below", "nul \0, lone \ud800", "child[1]")
    failure = Failure("Above", None, "root[1]", causes=(below, Failure("Beside", "x" * 5000, "other[1]")))
    async with home.driver() as driver:
        named = await driver.run(write(failure, home.failures))
        again = await driver.run(write(Failure.parent_said_so(named, source="root[1]"), home.failures))
    assert named == failure
    found = await read(home, id_of(named), id_of(again), None, id_of(named))
    assert found == {id_of(named): failure, id_of(again): again}
    with psycopg.connect(home.url) as connection:
        assert connection.execute("select count(*) from scoop_outbox.failure").fetchone() == (4,)


async def test_a_failure_is_read_once(home: Home) -> None:
    async with home.driver() as driver:
        named = await driver.run(write(Failure("One", "m", "s"), home.failures))
        known = KnownFailures()
        (first,) = (await driver.run(recall([id_of(named)], known))).values()
        with psycopg.connect(home.url) as connection:
            connection.execute("delete from scoop_outbox.failure")
        (second,) = (await driver.run(recall([id_of(named)], known))).values()
    assert first is second
    assert [failure.type for failure in (await read(home, id_of(named))).values()] == ["FailureRemoved"]


async def test_q40_a_chain_of_thousands_is_read_with_its_root_cause(home: Home) -> None:
    """Each level is written by another run, which names the one below and no more."""
    ids = [uuid4() for _ in range(3000)]
    with psycopg.connect(home.url) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "insert into scoop_outbox.failure (id, causes, type, message, source, document) "
            "values (%s, %s, 'T', null, 's', %s)",
            [
                (one, [] if number == 0 else [ids[number - 1]], json.dumps({"type": "T", "message": str(number)}))
                for number, one in enumerate(ids)
            ],
        )
    (failure,) = (await read(home, ids[-1])).values()
    assert failure.message == "2999"
    assert depth_of(failure) == DEPTH_LIMIT
    while failure.causes:
        failure = failure.causes[0]
    assert failure.message == "0"


async def test_q40_what_is_shared_at_every_level_does_not_explode(home: Home) -> None:
    failure = Failure("Root", "0", "s")
    async with home.driver() as driver:
        for number in range(1, 25):
            left, right = (Failure(side, str(number), "s", causes=(failure,)) for side in ("Left", "Right"))
            failure = await driver.run(write(Failure("Both", str(number), "s", causes=(left, right)), home.failures))
    (found,) = (await read(home, id_of(failure))).values()
    assert len(found.dumps()) <= SIZE_LIMIT
    assert [cause.type for cause in found.causes] == ["Left", "Right"]


@pytest.mark.parametrize("most, size", [(kept.MOST_READ, 30_000), (20, kept.BYTES_READ)])
async def test_q40_no_more_is_read_than_can_be_shown(
    home: Home, monkeypatch: pytest.MonkeyPatch, most: int, size: int
) -> None:
    monkeypatch.setattr(kept, "MOST_READ", most)
    monkeypatch.setattr(kept, "BYTES_READ", size)
    causes = [Failure("Boom", f"{number} " + "x" * 2000, "child[1]") for number in range(50)]
    async with home.driver() as driver:
        named = await driver.run(write(Failure.child_rolled_back("S", causes, source="root[1]"), home.failures))
    (found,) = (await read(home, id_of(named))).values()
    if most == 20:
        assert [cause.type for cause in found.causes] == [*["Boom"] * 19, "CausesLeftOut"]
        return
    assert [cause.type for cause in found.causes] == ["Boom"] * 50
    lengths = [len(cause.message or "") for cause in found.causes]
    assert set(lengths) == {len(causes[0].message or ""), len(causes[10].message or ""), 200}
    assert [(cause.message or "").split()[0] for cause in found.causes] == [str(number) for number in range(50)]


def test_what_has_not_been_asked_for_is_forgotten_first() -> None:
    known = KnownFailures(room=5000)
    writing = Writing(known)
    failures = [writing.name(Failure("T", "x" * 500, str(number))) for number in range(6)]
    for failure in failures[:5]:
        known.keep(failure)
        known.get(id_of(failures[0]) or uuid4())
    known.keep(failures[0])
    known.keep(failures[5])
    there = [number for number, failure in enumerate(failures) if known.get(id_of(failure) or uuid4()) is not None]
    assert there == [0, 2, 3, 4, 5]
    known.keep(writing.name(Failure("T", "x" * 6000, "large")))
    assert [failure for failure in failures if known.get(id_of(failure) or uuid4()) is not None] == []
