"""Launching under an id of the caller's, as often as it is tried; and launching many messages at once."""

import asyncio
import functools
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from scoop_outbox import (
    ConflictingMessage,
    DatabaseError,
    DistributedError,
    Draft,
    Handle,
    PayloadError,
    Scoop,
    StepError,
    UnhandledMessage,
    UnknownMessage,
)
from scoop_outbox._emission import Emission, emission
from scoop_outbox.app import service_of
from scoop_outbox.client import launcher as launching
from scoop_outbox.core.plans.idempotency import digest
from scoop_outbox.message import uuid7
from scoop_outbox.store import home
from scoop_outbox.store.pools import CLAIMING
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Shop, launches
from tests.waiting import until, until_blocking

VERSIONS: dict[str, Callable[[], uuid.UUID]] = {
    "1": uuid.uuid1,
    "3": lambda: uuid.uuid3(uuid.NAMESPACE_URL, "orders/1"),
    "4": uuid.uuid4,
    "5": lambda: uuid.uuid5(uuid.NAMESPACE_URL, "orders/1"),
    "6": lambda: uuid.UUID("1ef21d2f-1207-6660-8c4f-419efbd44d48"),
    "7": uuid7,
    "8": lambda: uuid.UUID("320c3d4d-cc00-875b-8ec9-32d5f69181c0"),
    "of another variant": lambda: uuid.UUID(int=1),
    "highest": lambda: uuid.UUID(int=(1 << 128) - 1),
}


def declare(shop: Shop, seen: list[Any]) -> None:
    shop.saga("root", "R", lambda scope, message: seen.append(message.payload))


def in_outbox(url: str) -> list[tuple[uuid.UUID, str]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "select message_id, convert_from(body, 'utf8') from scoop_outbox.outbox order by seq"
        ).fetchall()


def claimed(url: str) -> list[uuid.UUID]:
    with psycopg.connect(url) as connection:
        return [one for (one,) in connection.execute("select message_id from scoop_outbox.launched")]


def blocked(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        asked = connection.execute(
            "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
        return [pid for (pid,) in asked]


def session_of(url: str) -> Session:
    return Session(sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), poolclass=sa.NullPool))


@pytest.mark.everywhere
async def test_an_id_of_any_version_is_launched_once(mixed: Shop) -> None:
    seen: list[Any] = []
    declare(mixed, seen)
    mixed.saga("upper", "U", launches("R"), None)
    ids = {version: make() for version, make in VERSIONS.items()}

    async with mixed.running():
        handles = [await mixed.app.launch("U", version, id=mine) for version, mine in ids.items() for _ in range(3)]
        await asyncio.gather(*(handle.wait(LONG) for handle in handles))
        # Long after it has been handled.
        again = [await mixed.app.launch("U", version, id=mine) for version, mine in ids.items()]
        await asyncio.gather(*(handle.wait(LONG) for handle in again))
        found = [await mixed.app.status(mine) for mine in ids.values()]

    assert {handle.id for handle in (*handles, *again)} == set(ids.values())
    assert [[run.saga for run in status.runs] for status in found] == [["upper", "root"]] * len(ids)
    assert len({run.id for status in found for run in status.runs}) == 2 * len(ids)


async def test_ids_that_differ_at_their_end_have_runs_of_their_own(mixed: Shop) -> None:
    """A run's id begins as its message's: the rest has to tell them apart."""
    seen: list[Any] = []
    declare(mixed, seen)
    ids = [uuid.UUID(int=number) for number in range(1, 201)]

    async with mixed.running():
        for handle in await mixed.app.launch_many([Draft("R", one.int, id=one) for one in ids]):
            await handle.wait(LONG)

    assert sorted(seen) == list(range(1, 201))


async def test_the_same_launch_at_the_same_time_is_one(mixed: Shop, database_url: str) -> None:
    seen: list[Any] = []
    declare(mixed, seen)
    mine = uuid.uuid4()

    handles = await asyncio.gather(*(mixed.app.launch("R", {"a": 1}, key="k", id=mine) for _ in range(20)))

    assert in_outbox(database_url) == [(mine, '{"a":1}')]
    async with mixed.running():
        await asyncio.gather(*(handle.wait(LONG) for handle in handles))
    assert seen == [{"a": 1}]


def test_who_launches_meanwhile_waits_for_the_other_transaction(make_shop: MakeShop, database_url: str) -> None:
    app, mine = make_shop().app, uuid.uuid4()
    app.saga("root", on="R").add_step("only", lambda scope, message: None)
    done: list[uuid.UUID] = []

    def second() -> None:
        done.append(app.launch_sync("R", 1, id=mine).id)

    def waits() -> bool:
        with psycopg.connect(database_url) as connection:
            asked = connection.execute("select 1 from pg_stat_activity where wait_event_type = 'Lock'")
            return asked.fetchone() is not None

    for ends in ("rollback", "commit"):
        with session_of(database_url) as session:
            app.launch_sync("R", 1, id=mine, session=session)
            thread = threading.Thread(target=second)
            thread.start()
            until_blocking(waits)
            assert not done
            getattr(session, ends)()
        thread.join()
        assert done.pop() == mine
        assert len(in_outbox(database_url)) == 1
        # What was rolled back was not launched, and the second launch was.
        with psycopg.connect(database_url) as connection:
            connection.execute("delete from scoop_outbox.outbox")
            connection.execute("delete from scoop_outbox.launched")
            connection.execute("delete from scoop_outbox.expected_root")


async def test_others_launch_while_many_wait_for_another_transaction(mixed: Shop, database_url: str) -> None:
    """Each that waits has one of ten connections in its hands. All ten waited, and nobody launched for 20 s."""
    mine = uuid.uuid4()
    app, loop = mixed.app, asyncio.get_running_loop()
    with ThreadPoolExecutor(12) as executor, session_of(database_url) as session:
        app.launch_sync("R", 1, id=mine, session=session)
        waiting: list[asyncio.Future[Handle]] = [asyncio.create_task(app.launch("R", 1, id=mine)) for _ in range(12)]
        same = functools.partial(app.launch_sync, "R", 1, id=mine)
        waiting += [loop.run_in_executor(executor, same) for _ in range(12)]
        try:
            await until(lambda: len(blocked(database_url)) >= 2 * CLAIMING)
            async with asyncio.timeout(LONG / 2):
                await app.launch("R", 2)
                await asyncio.to_thread(app.launch_sync, "R", 3)
            assert not any(task.done() for task in waiting)
            assert len(blocked(database_url)) == 2 * CLAIMING
        finally:
            session.commit()
        assert {handle.id for handle in await asyncio.gather(*waiting)} == {mine}
    assert sorted(body for _, body in in_outbox(database_url)) == ["1", "2", "3"]


async def test_who_has_waited_for_too_long_is_told_that_nothing_was_launched(mixed: Shop, database_url: str) -> None:
    mine = uuid.uuid4()
    async with service_of(mixed.app).home.driver() as driver:
        await driver.raw.execute("set lock_timeout = '50ms'")
        await driver.raw.commit()
    with service_of(mixed.app).home.blocking_driver() as blocking:
        blocking.raw.execute("set lock_timeout = '50ms'")
        blocking.raw.commit()
    with session_of(database_url) as session:
        mixed.app.launch_sync("R", 1, id=mine, session=session)
        words = "^another open transaction has launched a message with this id.*: nothing was launched. Retry"
        with pytest.raises(DatabaseError, match=words):
            await mixed.app.launch("R", 1, id=mine)
        with pytest.raises(DatabaseError, match=words):
            await asyncio.to_thread(mixed.app.launch_sync, "R", 1, id=mine)
        session.rollback()
    await mixed.app.launch("R", 1, id=mine)
    assert in_outbox(database_url) == [(mine, "1")]


async def test_who_waits_for_a_turn_for_too_long_is_told_that_nothing_was_launched(
    mixed: Shop, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = uuid.uuid4()
    with session_of(database_url) as session:
        mixed.app.launch_sync("R", 1, id=mine, session=session)
        waiting = [asyncio.create_task(mixed.app.launch("R", 1, id=mine)) for _ in range(CLAIMING)]
        threads = [
            asyncio.create_task(asyncio.to_thread(mixed.app.launch_sync, "R", 1, id=mine)) for _ in range(CLAIMING)
        ]
        await until(lambda: len(blocked(database_url)) == 2 * CLAIMING)
        monkeypatch.setattr(home, "CLAIM_TIMEOUT", 0.05)
        with pytest.raises(DatabaseError, match="this launch got no connection within 20 s, and nothing was launched"):
            await mixed.app.launch("R", 1, id=uuid.uuid4())
        with pytest.raises(DatabaseError, match="this launch got no connection within 20 s, and nothing was launched"):
            await asyncio.to_thread(mixed.app.launch_sync, "R", 1, id=uuid.uuid4())
        session.commit()
    await asyncio.gather(*waiting, *threads)
    assert in_outbox(database_url) == [(mine, "1")]


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "topic": ({"topic": "other"}, "on topic 'other' was launched on another topic before"),
    "payload": ({"payload": {"a": 2}}, "another payload, content type or key"),
    "key": ({"key": "other"}, "another payload, content type or key"),
    "content type": ({"headers": {"content-type": "text/plain"}}, "another payload, content type or key"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_another_message_under_the_same_id_is_refused(mixed: Shop, database_url: str, change: str) -> None:
    first: dict[str, Any] = {"topic": "R", "payload": {"a": 1}, "key": "k"}
    mine = uuid.uuid4()
    await mixed.app.launch(**first, id=mine)
    changed, words = CHANGES[change]

    with pytest.raises(ConflictingMessage, match=words) as caught:
        await mixed.app.launch(**(first | changed), id=mine)
    with pytest.raises(ConflictingMessage, match=words):
        mixed.app.launch_sync(**(first | changed), id=mine)

    assert str(mine) in str(caught.value)
    assert len(in_outbox(database_url)) == 1


async def test_what_tells_only_of_the_way_may_differ(mixed: Shop, database_url: str) -> None:
    mine = uuid.uuid4()
    await mixed.app.launch("R", {"a": 1, "b": 2}, headers={"trace": "1"}, context={"who": 1}, id=mine)
    await mixed.app.launch("R", {"b": 2, "a": 1}, headers={"trace": "2"}, context={"who": 2}, id=mine)
    assert len(in_outbox(database_url)) == 1


async def test_the_id_of_a_message_that_had_none_of_the_callers_is_refused(mixed: Shop, database_url: str) -> None:
    seen: list[Any] = []
    declare(mixed, seen)
    async with mixed.running():
        handle = await mixed.app.launch("R", 1)
        await handle.wait(LONG)
        with pytest.raises(ConflictingMessage, match="not launched under an id of the caller's"):
            await mixed.app.launch("R", 1, id=handle.id)
    assert claimed(database_url) == []


async def test_a_refused_launch_leaves_no_id_claimed(mixed: Shop, database_url: str) -> None:
    """The caller may catch the error and commit: an id that stayed claimed could never be launched."""
    taken, free = uuid.uuid4(), uuid.uuid4()
    mixed.app.launch_sync("R", 1, id=taken)
    with session_of(database_url) as session:
        with pytest.raises(ConflictingMessage):
            mixed.app.launch_many_sync([Draft("R", 1, id=free), Draft("R", 2, id=taken)], session=session)
        with pytest.raises(UnhandledMessage):
            mixed.app.launch_sync("nobody", 1, id=free, require_handlers=True, session=session)
        session.commit()
    assert claimed(database_url) == [taken]
    mixed.app.launch_sync("R", 1, id=free)
    assert [one for one, _ in in_outbox(database_url)] == [taken, free]


@pytest.mark.parametrize("wrong", ["0190", 7, uuid.UUID(int=0), "0190c0de-0000-7000-8000-000000000001"])
async def test_what_is_no_id_is_refused(mixed: Shop, wrong: Any) -> None:
    with pytest.raises(PayloadError, match=r"a message's id is a uuid.UUID, of any version but the nil one"):
        await mixed.app.launch("R", 1, id=wrong)


def emitted(**changes: Any) -> Emission:
    given: dict[str, Any] = {"topic": "R", "payload": {"a": 1}, "key": None, "headers": None} | changes
    topic, payload = given.pop("topic"), given.pop("payload")
    return emission(topic, payload, context=None, awaited=False, depth=0, message_id=uuid.uuid4(), **given)


def test_digests_are_as_different_as_messages() -> None:
    as_json = {"content-type": "application/json"}
    same = [
        [emitted(payload={"a": 1, "b": [2]}), emitted(payload={"b": [2], "a": 1})],
        [emitted(payload=b"{bad", headers=as_json), emitted(payload=b"{bad", headers=as_json)],
        [emitted(), emitted(headers={"trace": "x"})],
    ]
    for one, other in same:
        assert digest(one) == digest(other)
    different = [
        emitted(),
        emitted(key=""),
        emitted(key="key"),
        emitted(payload={"a": 2}),
        emitted(payload=b'{"a":1}'),
        emitted(payload=b"{bad", headers=as_json),
        emitted(payload={"a": True}),
        emitted(payload={"a": 1.0}),
    ]
    assert len({digest(one) for one in different}) == len(different)


# -- many at once ---------------------------------------------------------------------------------------------------


@pytest.mark.everywhere
async def test_many_are_handled_each_and_in_order(mixed: Shop) -> None:
    seen: list[Any] = []
    declare(mixed, seen)
    other: list[Any] = []
    mixed.saga("other", "O", lambda scope, message: other.append((message.payload, scope.context.get("who"))))
    drafts = [Draft("R", number, key="k") for number in range(50)]
    drafts.insert(25, Draft("O", "x", context={"who": "me"}, headers={"h": "1"}))

    async with mixed.running():
        handles = await mixed.app.launch_many(iter(drafts))
        for handle in handles:
            await handle.wait(LONG)
        messages = [await mixed.app.message(handle.id) for handle in handles]

    assert [message.payload for message in messages] == [draft.payload for draft in drafts]
    assert messages[25].headers == {"h": "1"}
    assert sorted(seen) == list(range(50))
    assert other == [("x", "me")]


@pytest.mark.parametrize("joined", [False, True])
def test_many_stand_in_the_outbox_in_order_by_one_statement(
    make_shop: MakeShop, database_url: str, joined: bool
) -> None:
    app = make_shop().app
    with session_of(database_url) as session:
        handles = app.launch_many_sync(
            [Draft("R", number) for number in range(300)], session=session if joined else None
        )
        assert in_outbox(database_url) == [] if joined else in_outbox(database_url)
        session.commit()
    assert in_outbox(database_url) == [(handle.id, str(number)) for number, handle in enumerate(handles)]
    with psycopg.connect(database_url) as connection:
        written = connection.execute("select distinct xmin::text, cmin::text from scoop_outbox.outbox").fetchall()
    assert len(written) == 1


async def test_many_are_launched_together_or_not_at_all(mixed: Shop, database_url: str) -> None:
    good = [Draft("R", number) for number in range(5)]
    with pytest.raises(PayloadError, match="cannot be encoded"):
        await mixed.app.launch_many([*good, Draft("R", object())])
    with pytest.raises(UnhandledMessage):
        await mixed.app.launch_many([*good, Draft("nobody", 1, require_handlers=True)])
    assert in_outbox(database_url) == []
    assert await mixed.app.launch_many([]) == []


async def test_many_are_no_more_than_fit_into_a_statement(
    mixed: Shop, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        PayloadError, match="at most 10000 messages with 67108864 bytes of bodies, contexts and headers at once"
    ):
        mixed.app.launch_many_sync(Draft("R", 1) for _ in range(10_001))
    monkeypatch.setattr(launching, "BYTES_AT_ONCE", 100)
    with pytest.raises(PayloadError, match="launch the others in another call"):
        await mixed.app.launch_many([Draft("R", b"x" * 60), Draft("R", b"x" * 60)])
    assert in_outbox(database_url) == []


async def test_many_under_ids_are_launched_each_once(mixed: Shop, database_url: str) -> None:
    ids = [uuid.uuid4() for _ in range(10)]
    await mixed.app.launch_many([Draft("R", number, id=ids[number]) for number in (3, 4)])
    drafts = [Draft("R", number, id=ids[number]) for number in range(10)]
    handles = await mixed.app.launch_many([*drafts, drafts[0], Draft("R", "own")])
    assert [handle.id for handle in handles[:-1]] == [*ids, ids[0]]
    expected = [*ids[3:5], *ids[:3], *ids[5:], handles[-1].id]
    assert [one for one, _ in in_outbox(database_url)] == expected
    with pytest.raises(ConflictingMessage, match="is given twice, for messages that differ"):
        await mixed.app.launch_many([Draft("R", 1, id=(same := uuid.uuid4())), Draft("R", 2, id=same)])


async def test_many_in_a_step_are_launched_with_the_step_or_refused(mixed: Shop) -> None:
    seen: list[Any] = []
    declare(mixed, seen)
    app = mixed.app

    async def bulk(scope: Any, message: Any) -> None:
        await app.launch_many([Draft("R", "in the step"), Draft("R", "too")], session=scope.session)
        if message.payload == "fail":
            raise ValueError
        if message.payload == "alone":
            await app.launch_many([Draft("R", "alone")])

    app.saga("bulk", on="bulk").add_step("bulk", bulk)
    async with mixed.running():
        with pytest.raises(DistributedError):
            await (await app.launch("bulk", "fail")).wait(LONG)
        with pytest.raises(DistributedError, match=StepError.__name__):
            await (await app.launch("bulk", "alone")).wait(LONG)
        await (await app.launch("bulk", "commit")).wait(LONG)
        await (await app.launch("R", "last")).wait(LONG)
    assert sorted(seen) == ["in the step", "last", "too"]


async def test_before_the_first_worker_each_message_waits_for_its_own_saga(database_url: str, mixed: Shop) -> None:
    """A launcher with sagas on several topics knows who of them handles which, before anybody was announced."""
    app = Scoop("fresh", database=database_url)
    app.saga("a", on="A").add_step("only", lambda scope, message: scope.set_result("a"))
    app.saga("b", on="B").add_step("only", lambda scope, message: scope.set_result("b"))
    handles = await app.launch_many([Draft("A", 1), Draft("B", 1), Draft("nobody", 1)])
    async with app.running():
        for handle in handles[:2]:
            await handle.wait(LONG)
    assert [len((await app.status(handle.id)).runs) for handle in handles[:2]] == [1, 1]
    with pytest.raises(UnknownMessage):
        await app.status(uuid.uuid4())
    assert app.unhandled == {"nobody": 1}
    await app.close()
