"""Sagas that are ordered by key: a run begins when the one of the same key before it has ended."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoop_outbox import DefinitionError, DistributedError, Repeat, RunState, Scoop
from scoop_outbox.app import service_of
from scoop_outbox.core.plans import placement
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.carriers import BUILTIN, KAFKA
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Journal, Shop, callback, launches, nothing, together
from tests.waiting import until


class Watched:
    """Notes who begins and ends, and that nobody of a key begins while another one is under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.under_way: dict[Any, Any] = {}
        self.begun: list[tuple[Any, Any]] = []
        self.most = 0
        self.overlaps: list[tuple[Any, Any, Any]] = []

    def begin(self, key: Any, value: Any) -> None:
        with self._lock:
            if self.under_way.get(key, value) != value:
                self.overlaps.append((key, self.under_way[key], value))
            self.under_way[key] = value
            self.begun.append((key, value))
            self.most = max(self.most, len(self.under_way))

    def end(self, key: Any) -> None:
        with self._lock:
            self.under_way.pop(key, None)

    def of(self, key: Any) -> list[Any]:
        return [value for one, value in self.begun if one == key]


def ask(shop: Shop, question: str, *values: Any) -> list[tuple[Any, ...]]:
    url = service_of(shop.app).home.url
    with psycopg.connect(url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
        return connection.execute(question.encode(), values).fetchall()


def ordered(shop: Shop, watched: Watched, *between: Any) -> None:
    """Declare a saga that begins in its first step and ends in its last one, with others in between."""
    saga = shop.app.saga("in order", on="orders", ordered="key")
    shop.step(saga, "begin", lambda _, message: watched.begin(message.key, message.payload))
    for number, body in enumerate(between):
        shop.step(saga, f"between {number}", body)
    shop.step(saga, "end", lambda _, message: watched.end(message.key))


def ignored(_: object) -> None:
    """A callback returns nothing."""


def launches_below(scope: Any, message: Any) -> None:
    scope.launch("below", message.payload)


async def launch_all(shop: Shop, messages: list[tuple[str | None, Any]]) -> list[Any]:
    return [await shop.app.launch("orders", value, key=key) for key, value in messages]


async def test_messages_of_a_key_are_handled_one_after_the_other_in_order(shop: Shop) -> None:
    watched = Watched()
    ordered(shop, watched, nothing)
    async with shop.running():
        handles = await launch_all(shop, [("a", number) for number in range(20)])
        await together(*(handle.wait(LONG) for handle in handles))
    assert watched.of("a") == list(range(20))
    assert watched.overlaps == []
    assert ask(shop, "select count(*) from lane_entry") == [(0,)]
    assert ask(shop, "select count(*) from mailbox") == [(0,)]


async def test_messages_that_lie_waiting_are_handled_in_order(shop: Shop) -> None:
    watched = Watched()
    ordered(shop, watched)
    handles = await launch_all(shop, [("ab"[number % 2], number) for number in range(40)])
    async with shop.running():
        await together(*(handle.wait(LONG) for handle in handles))
    assert watched.of("a") == list(range(0, 40, 2))
    assert watched.of("b") == list(range(1, 40, 2))
    assert watched.overlaps == []


async def test_different_keys_are_handled_side_by_side(shop: Shop) -> None:
    watched = Watched()

    def all_here(*_: Any) -> Iterator[Any]:
        yield lambda: watched.most == 4

    ordered(shop, watched, all_here)
    async with shop.running():
        handles = await launch_all(shop, [(key, key) for key in "abcd"])
        await together(*(handle.wait(LONG) for handle in handles))
    assert watched.most == 4


async def test_messages_without_a_key_wait_for_nobody(shop: Shop) -> None:
    watched = Watched()

    def all_here(*_: Any) -> Iterator[Any]:
        yield lambda: len(watched.begun) == 4

    saga = shop.app.saga("in order", on="orders", ordered="key")
    shop.step(saga, "only", lambda _, message: watched.begin(message.payload, message.payload))
    shop.step(saga, "wait", all_here)
    async with shop.running():
        handles = await launch_all(shop, [(None, number) for number in range(4)])
        await together(*(handle.wait(LONG) for handle in handles))


async def test_the_next_begins_only_after_the_children_of_the_one_before(shop: Shop) -> None:
    watched = Watched()
    children: list[str] = []

    def child(_: Any, message: Any) -> None:
        assert watched.under_way == {"a": message.payload}
        children.append(message.payload)

    shop.saga("child", "below", child)
    ordered(shop, watched, launches_below)
    async with shop.running():
        handles = await launch_all(shop, [("a", number) for number in range(6)])
        await together(*(handle.wait(LONG) for handle in handles))
    assert children == watched.of("a") == list(range(6))


async def test_the_next_begins_after_the_one_before_has_rolled_back(shop: Shop, journal: Journal) -> None:
    def fails(_: Any, message: Any) -> None:
        if message.payload % 2:
            raise RuntimeError("odd")

    saga = shop.app.saga("in order", on="orders", ordered="key")
    shop.step(saga, "0")
    shop.step(saga, "1", fails)
    async with shop.running():
        handles = await launch_all(shop, [("a", number) for number in range(4)])
        for number, handle in enumerate(handles):
            if number % 2:
                with pytest.raises(DistributedError):
                    await handle.wait(LONG)
            else:
                await handle.wait(LONG)
    steps = ["in order-0", "in order-1"]
    assert journal == [*steps, *steps, "in order-rb0", *steps, *steps, "in order-rb0"]


async def test_the_next_begins_after_the_rollback_of_the_one_before_has_failed(shop: Shop, journal: Journal) -> None:
    def fails(_: Any, message: Any, *__: Any) -> None:
        if message.payload == 0:
            raise RuntimeError("no")

    saga = shop.app.saga("in order", on="orders", ordered="key")
    shop.step(saga, "0", compensate=fails)
    shop.step(saga, "1", fails)
    async with shop.running():
        first, second = await launch_all(shop, [("a", 0), ("a", 1)])
        with pytest.raises(DistributedError):
            await first.wait(LONG)
        await second.wait(LONG)
    assert (await shop.only(first, "in order")).state is RunState.ROLLBACK_FAILED
    assert journal == ["in order-0", "in order-1", "in order-rb0", "in order-0", "in order-1"]


@pytest.mark.parametrize("carrier", [BUILTIN, KAFKA], indirect=True)  # RabbitMQ keeps nothing for a queue to come
async def test_a_parked_run_holds_its_key_and_no_other(make_shop: MakeShop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "GRACE", timedelta(0))
    watched = Watched()
    other, old, new = make_shop("mixed", "other"), make_shop("mixed"), make_shop("mixed")
    other.saga("child", "below", nothing)
    other.app.announce_sync()
    for version in (old, new):
        saga = version.app.saga("in order", on="orders", ordered="key")
        version.step(saga, "begin", lambda _, message: watched.begin(message.key, message.payload))
        if version is old:
            version.step(saga, "launch", launches("below"))
            version.step(saga, "gone in the new version")
    async with old.running():
        first = await old.app.launch("orders", 0, key="a")
        await until(lambda: ask(old, "select count(*) from child where open") == [(1,)])
    async with new.running(), other.running():
        await new.app.launch("orders", 1, key="a")
        await (await new.app.launch("orders", 2, key="b")).wait(LONG)
        await until(lambda: ask(new, "select state from run where message_id = %s", first.id) == [("parked",)])
        await until(lambda: ask(new, "select count(*) from mailbox") == [(0,)])
    assert watched.begun == [("a", 0), ("b", 2)]
    assert ask(new, "select count(*) from lane_entry") == [(2,)]


async def test_a_committed_run_that_is_rolled_back_later_does_not_take_its_place_again(
    shop: Shop, journal: Journal
) -> None:
    watched = Watched()
    saga = shop.app.saga("in order", on="orders", ordered="key")
    shop.step(
        saga,
        "0",
        lambda _, message: watched.begin(message.payload, message.payload),
        compensate=lambda *_: journal("undone"),
    )
    root_saga = shop.saga("root", "roots", launches("orders", payload=1, key="a"))

    def fails(*_: Any) -> Iterator[Any]:
        yield lambda: len(watched.begun) == 2
        raise RuntimeError("boom")

    shop.step(root_saga, "fail", fails)
    async with shop.running():
        root = await shop.app.launch("roots", None)
        await until(lambda: len(watched.begun) == 1)
        await (await shop.app.launch("orders", 2, key="a")).wait(LONG)
        with pytest.raises(DistributedError):
            await root.wait(LONG)
    assert journal.count("undone") == 1
    assert ask(shop, "select count(*) from lane_entry") == [(0,)]


async def test_a_message_that_is_delivered_again_takes_no_place(mixed: Shop) -> None:
    watched = Watched()
    ordered(mixed, watched)
    async with mixed.running():
        handle = await mixed.app.launch("orders", 1, key="a")
        await handle.wait(LONG)
        ask(
            mixed,
            """insert into outbox (shard, message_id, topic, key, body, content_type, headers)
               select 0, id, topic, key, body, content_type, headers from message returning 1""",
        )
        await until(lambda: ask(mixed, "select count(*) from outbox") == [(0,)])
        await (await mixed.app.launch("orders", 2, key="a")).wait(LONG)
    assert watched.of("a") == [1, 2]
    assert ask(mixed, "select count(*) from lane_entry") == [(0,)]


async def test_a_run_does_not_wait_for_one_above_it_that_waits_for_it(shop: Shop, journal: Journal) -> None:
    saga = shop.app.saga("in order", on="orders", ordered="key")

    def again(scope: Any, message: Any) -> None:
        if message.payload < 2:
            scope.launch("between", message.payload + 1, key="other")

    shop.saga("between", "between", lambda scope, message: ignored(scope.launch("orders", message.payload, key="a")))
    shop.step(saga, "down", again)
    shop.step(saga, "up", lambda _, message: journal(f"up {message.payload}"))
    async with shop.running():
        first = await shop.app.launch("orders", 0, key="a")
        second = await shop.app.launch("orders", 5, key="a")
        await together(first.wait(LONG), second.wait(LONG))
    assert [entry for entry in journal.entries if entry.startswith("up")] == ["up 2", "up 1", "up 0", "up 5"]
    assert ask(shop, "select count(*) from lane_entry") == [(0,)]


async def test_keys_may_be_long_and_odd(mixed: Shop) -> None:
    watched = Watched()
    ordered(mixed, watched)
    keys: list[str | bytes] = ["k" * 1024, "k" * 1023 + "l", "schön", "\\x00", b"\xff\x00", "", " ", "a\nb"]
    async with mixed.running():
        handles = [await mixed.app.launch("orders", number, key=key) for number in range(2) for key in keys]
        await together(*(handle.wait(LONG) for handle in handles))
    assert Counter(watched.begun) == {(key, number): 1 for number in range(2) for key in keys}
    assert all(watched.of(key) == [0, 1] for key in keys)


async def test_what_makes_a_run_ordered_is_known_when_it_is_taken_in(make_shop: MakeShop) -> None:
    ordinary, watched = make_shop("mixed"), Watched()
    ordinary.step(ordinary.app.saga("in order", on="orders"), "only")
    first = await ordinary.run("orders", 1, key="a")
    assert ask(ordinary, "select lane from run") == [(None,)]
    ordinary = make_shop("mixed")
    ordered(ordinary, watched)
    second = await ordinary.run("orders", 2, key="a")
    assert first.id != second.id
    assert ask(ordinary, "select count(*), count(lane) from run") == [(2, 1)]


@pytest.mark.parametrize("value", ["keys", True, "", "topic"])
def test_what_cannot_be_ordered_by_is_refused(value: Any) -> None:
    app = Scoop("shop", database="postgresql://localhost/nowhere")
    with pytest.raises(DefinitionError, match=r"ordered=.* is unknown; ordered='key' executes"):
        app.saga("in order", on="orders", ordered=value)


@pytest.mark.parametrize("carrier", [BUILTIN], indirect=True)  # taken in without being executed
async def test_a_run_that_asks_while_the_one_before_is_ending_is_not_forgotten(mixed: Shop) -> None:
    watched = Watched()
    ordered(mixed, watched)
    first, second = await launch_all(mixed, [("a", 1), ("a", 2)])
    async with mixed.running(worker=False):
        await until(lambda: ask(mixed, "select count(*) from lane_entry") == [(2,)])
    queries, url = service_of(mixed.app).home.queries, service_of(mixed.app).home.url
    ((first_run, lane),) = ask(mixed, "select id, lane from run where message_id = %s", first.id)
    ((second_run,),) = ask(mixed, "select id from run where message_id = %s", second.id)
    ask(mixed, "update lane_entry set held = true where run_id = %s returning 1", first_run)
    ask(mixed, "delete from mailbox where run_id = %s returning 1", first_run)
    with psycopg.connect(url) as ending:
        ending.execute(queries["lock_lane"], {"lane": lane})
        async with mixed.running():
            # The second one asks, and has to wait for the answer until the first one has committed its end.
            await until(lambda: ask(mixed, "select 1 from pg_locks where locktype = 'advisory' and not granted"))
            ending.execute(queries["leave_lane"], {"run": first_run})
            ending.commit()
            await second.wait(LONG)
    assert watched.begun == [("a", 2)]
    assert ask(mixed, "select run_id from lane_entry where run_id = %s", second_run) == []


@contextmanager
def services(make_shop: MakeShop, watched: Watched, count: int) -> Iterator[list[Shop]]:
    made = [make_shop("mixed") for _ in range(count)]
    for shop in made:
        ordered(shop, watched, nothing)
    yield made


async def test_several_workers_keep_the_order_of_many_messages(make_shop: MakeShop) -> None:
    watched = Watched()
    with services(make_shop, watched, 3) as shops:
        async with AsyncExitStack() as stack:
            for shop in shops:
                await stack.enter_async_context(shop.running(slots=6))
            handles = await launch_all(shops[0], [(f"key {number % 5}", number) for number in range(200)])
            await together(*(handle.wait(60) for handle in handles))
    assert watched.overlaps == []
    for key in range(5):
        assert watched.of(f"key {key}") == list(range(key, 200, 5))
    assert ask(shops[0], "select count(*) from lane_entry") == [(0,)]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=st.lists(
        st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["fine", "fails", "launches", "tries again"])),
        max_size=20,
    ),
    colours=st.lists(st.sampled_from(["async", "blocking"]), min_size=1, max_size=3),
)
def test_whatever_becomes_of_runs_the_next_one_begins(
    database_url: str, messages: list[tuple[str, str]], colours: list[str]
) -> None:
    watched = Watched()

    def begin(_: Any, message: Any) -> None:
        watched.begin(message.key, message.payload[0])

    def work(scope: Any, message: Any) -> Any:
        number, what = message.payload
        if what == "fails":
            raise RuntimeError(number)
        if what == "launches":
            scope.launch("below", number)
        return Repeat() if what == "tries again" and scope.iteration < 2 else None

    def end(_: Any, message: Any, *__: Any) -> None:
        watched.end(message.key)

    async def run() -> None:
        async with AsyncExitStack() as stack:
            apps = []
            for colour in colours:
                app = Scoop("shop", database=database_url)
                saga = app.saga("in order", on="orders", ordered="key")
                saga.add_step("begin", callback(colour, begin), compensate=callback(colour, end))
                saga.add_step("work", callback(colour, work))
                saga.add_step("end", callback(colour, end))
                app.saga("child", on="below").add_step("only", callback(colour, nothing))
                await stack.enter_async_context(app.running(slots=4))
                apps.append(app)
            handles = [
                await apps[0].launch("orders", [number, what], key=key) for number, (key, what) in enumerate(messages)
            ]
            ended = await asyncio.gather(*(handle.wait(LONG) for handle in handles), return_exceptions=True)
            assert [isinstance(one, DistributedError) for one in ended] == [what == "fails" for _, what in messages]

    asyncio.run(run())
    assert watched.overlaps == []
    for key in "abc":
        assert watched.of(key) == [number for number, (of, _) in enumerate(messages) if of == key]
