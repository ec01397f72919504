"""Q68, Q80: a saga that has another name takes over what was subscribed, waited for and under way under the old one."""

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from scoop_outbox import Message, RunState, Scoop, Scope
from scoop_outbox.app import service_of
from scoop_outbox.core.plans.intake import take_in
from scoop_outbox.message import Envelope
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.fake_broker import FakeBroker
from tests.waiting import until


def ask(url: str, question: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
        return connection.execute(question.encode(), values).fetchall()


class Version:
    """One version of the service `shop`: its saga on `orders`, and one that launches there and waits."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        formerly: Sequence[str] = (),
        ordered: bool = False,
        colour: str = "async",
        on: str = "orders",
        broker: FakeBroker | None = None,
    ) -> None:
        self.did: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.app = Scoop("shop", database=url)
        if broker is not None:
            servers = service_of(self.app).servers
            servers.broker, servers._broker_url = broker, "fake://"
        saga = self.app.saga(name, on=on, ordered="key" if ordered else None, formerly=formerly)

        async def first(scope: Scope, message: Message) -> None:
            self.did.append(f"{name} first {message.payload}")
            await self.gate.wait()

        def first_blocking(scope: Scope, message: Message) -> None:
            self.did.append(f"{name} first {message.payload}")

        async def second(scope: Scope, message: Message) -> None:
            self.did.append(f"{name} second {message.payload}")
            scope.set_result(message.payload)

        async def undo(scope: Scope, message: Message, error: Exception) -> None:
            self.did.append(f"{name} undone {message.payload}")

        saga.add_step("first", first if colour == "async" else first_blocking, compensate=undo)
        saga.add_step("second", second)


def launcher(url: str, *, fails: bool = False) -> Scoop:
    """A service that launches on `orders` from a step, and waits."""
    app = Scoop("launcher", database=url)
    saga = app.saga("launcher", on="begin")

    async def launch(scope: Scope, message: Message) -> None:
        scope.launch("orders", message.payload, key="k")

    async def after(scope: Scope, message: Message) -> None:
        if fails:
            raise ValueError("after all")

    saga.add_step("launch", launch)
    saga.add_step("after", after)
    return app


def subscribed(url: str) -> set[str]:
    return {saga for (saga,) in ask(url, "select saga from subscription where service = 'shop'")}


async def launched_and_waited_for(url: str, waits: Scoop) -> Any:
    async with waits.running(worker=False):
        handle = await waits.launch("begin", 1)
        await until(lambda: ask(url, "select count(*) from run") == [(1,)])
    async with waits.running(relay=False):
        await until(lambda: ask(url, "select count(*) from child") == [(1,)])
    return handle


@pytest.mark.parametrize("colour", ["async", "blocking"])
async def test_q68_rev_07_what_is_launched_after_a_renaming_ends(database_url: str, colour: str) -> None:
    old = Version(database_url, "order", colour=colour)
    async with old.app.running():
        await (await old.app.launch("orders", 1)).wait(20)
    new = Version(database_url, "place-order", formerly=["order"], colour=colour)
    async with new.app.running():
        await (await new.app.launch("orders", 2)).wait(20)
    assert new.did == ["place-order first 2", "place-order second 2"]
    assert subscribed(database_url) == {"place-order"}
    # What has ended is not written anew.
    assert ask(database_url, "select saga from run order by created_at") == [("order",), ("place-order",)]


async def test_q68_since_when_somebody_is_subscribed_and_where_stays(database_url: str) -> None:
    await announced(Version(database_url, "order", on="orders.old"))
    before = ask(database_url, "select created_at from subscription")
    await announced(Version(database_url, "place-order", formerly=["order"]))
    # As with a saga that only moves to another topic: what comes on the old one is handled, until that is forgotten.
    assert ask(database_url, "select topic, saga from subscription order by topic") == [
        ("orders", "place-order"),
        ("orders.old", "place-order"),
    ]
    assert ask(database_url, "select created_at from subscription where topic = 'orders.old'") == before


async def announced(version: Version) -> None:
    await version.app.announce()
    await version.app.close()


async def test_q68_a_message_that_is_waited_for_is_taken_over_before_it_is_taken_in(database_url: str) -> None:
    await announced(Version(database_url, "order"))
    waits = launcher(database_url)
    handle = await launched_and_waited_for(database_url, waits)
    new = Version(database_url, "place-order", formerly=["order"])
    await new.app.announce()
    assert ask(database_url, "select saga, state from child") == [("place-order", "waiting")]
    async with new.app.running(), waits.running(relay=False):
        await handle.wait(20)
    assert new.did == ["place-order first 1", "place-order second 1"]
    assert ask(database_url, "select count(*) from run where late") == [(0,)]


@pytest.mark.parametrize("fails", [False, True])
async def test_q68_a_run_under_way_goes_on_under_the_new_name_and_tells_its_parent(
    database_url: str, fails: bool
) -> None:
    old = Version(database_url, "order")
    await old.app.announce()
    waits = launcher(database_url, fails=fails)
    handle = await launched_and_waited_for(database_url, waits)
    async with old.app.running(worker=False):
        await until(lambda: ask(database_url, "select count(*) from run") == [(2,)])
    ask(
        database_url,
        """update run set seq = 1, instance = 1, step = 'first', next_step = 'second'
           where saga = 'order' returning 1""",
    )
    ask(
        database_url,
        """insert into step (run_id, seq, step, kind, iteration, attempt, state, started_at, ended_at, worker)
           select id, 1, 'first', 'step', 0, 0, 'committed', now(), now(), 'w' from run where saga = 'order'
           returning 1""",
    )
    new = Version(database_url, "place-order", formerly=["order"])
    await new.app.announce()
    for table in ("run", "child", "mailbox"):
        assert ask(database_url, f"select distinct saga from {table} where saga <> 'launcher'") == [("place-order",)]  # noqa: S608
    async with new.app.running(), waits.running(relay=False):
        if fails:
            with pytest.raises(Exception, match="after all"):
                await handle.wait(20)
        else:
            await handle.wait(20)
    undone = ["place-order undone 1"] if fails else []
    assert new.did == ["place-order second 1", *undone]


async def test_q68_a_run_that_has_ended_is_undone_by_the_saga_that_has_its_name_now(database_url: str) -> None:
    old = Version(database_url, "order")
    waits = launcher(database_url, fails=True)
    await old.app.announce()
    handle = await launched_and_waited_for(database_url, waits)
    async with old.app.running():
        await until(lambda: ask(database_url, "select state from run where saga = 'order'") == [("committed",)])
    new = Version(database_url, "place-order", formerly=["order"])
    async with new.app.running(), waits.running(relay=False):
        with pytest.raises(Exception, match="after all"):
            await handle.wait(20)
    assert new.did == ["place-order undone 1"]
    assert ask(database_url, "select state from run where saga = 'order'") == [("rolled_back",)]


async def test_q68_a_run_that_is_being_executed_is_left_and_goes_on_all_the_same(database_url: str) -> None:
    old = Version(database_url, "order")
    old.gate.clear()
    waits = launcher(database_url)
    await old.app.announce()
    handle = await launched_and_waited_for(database_url, waits)
    new = Version(database_url, "place-order", formerly=["order"])
    async with old.app.running(), waits.running(relay=False):
        await until(lambda: old.did == ["order first 1"])
        async with asyncio.timeout(10):
            await new.app.announce()
        async with new.app.running(relay=False):
            old.gate.set()
            await handle.wait(20)
    assert old.did[0] == "order first 1"
    assert len([*old.did, *new.did]) == 2
    assert ask(database_url, "select state from child") == [("committed",)]


async def test_q68_what_has_not_ended_is_taken_over_whatever_it_waits_for(database_url: str) -> None:
    old = Version(database_url, "order")
    await old.app.announce()
    waits = launcher(database_url)
    await launched_and_waited_for(database_url, waits)
    async with old.app.running(worker=False):
        await until(lambda: ask(database_url, "select count(*) from run") == [(2,)])
    await old.app.close()
    # Parked: neither mail nor children.
    ask(database_url, "update run set state = 'parked', reason = 'gone' where saga = 'order' returning 1")
    ask(database_url, "delete from mailbox returning 1")
    await announced(Version(database_url, "place-order", formerly=["order"]))
    assert ask(database_url, "select saga from run where state = 'parked'") == [("place-order",)]
    # Waiting for a child: no mail either.
    ask(database_url, "update child set saga = 'order' returning 1")
    ask(database_url, "update run set saga = 'order', state = 'running' where state = 'parked' returning 1")
    ask(
        database_url,
        """insert into child (message_id, service, saga, run_id, seq, ordinal)
           select gen_random_uuid(), 'x', 'y', id, 1, 1 from run where saga = 'order' returning 1""",
    )
    await announced(Version(database_url, "place-order", formerly=["order"]))
    assert ask(database_url, "select count(*) from run where saga = 'place-order'") == [(1,)]
    await waits.close()


async def test_q68_taking_over_again_changes_nothing(database_url: str) -> None:
    await announced(Version(database_url, "order"))
    tables = ["subscription", "renamed", "run", "child", "mailbox", "lane_entry"]
    seen = []
    for _ in range(3):
        await announced(Version(database_url, "place-order", formerly=["order"]))
        seen.append([ask(database_url, f"select * from {table}") for table in tables])  # noqa: S608
    assert seen[0] == seen[1] == seen[2]


async def test_q68_a_saga_may_have_had_many_names(database_url: str) -> None:
    await announced(Version(database_url, "a"))
    await announced(Version(database_url, "b", formerly=["a"]))
    waits = launcher(database_url)
    handle = await launched_and_waited_for(database_url, waits)
    # What `b` was before is not said again.
    ask(database_url, "update child set saga = 'a' returning 1")
    new = Version(database_url, "c", formerly=["b"])
    async with new.app.running(), waits.running(relay=False):
        await handle.wait(20)
    assert new.did == ["c first 1", "c second 1"]
    assert subscribed(database_url) == {"c"}


async def test_q68_what_is_ordered_stays_so_across_names(database_url: str) -> None:
    old = Version(database_url, "order", ordered=True)
    old.gate.clear()
    new = Version(database_url, "place-order", formerly=["order"], ordered=True)
    async with old.app.running():
        first = await old.app.launch("orders", 1, key="k")
        second = await old.app.launch("orders", 2, key="k")
        await until(lambda: old.did == ["order first 1"])
        await until(lambda: ask(database_url, "select count(*) from lane_entry") == [(2,)])
        async with new.app.running(relay=False):
            third = await new.app.launch("orders", 3, key="k")
            await until(lambda: ask(database_url, "select count(*) from lane_entry") == [(3,)])
            assert len(ask(database_url, "select distinct lane from lane_entry")) == 1
            assert new.did == []
            old.gate.set()
            for handle in (first, second, third):
                await handle.wait(20)
    # Who executes the rest of the first is open; nothing overtakes anything.
    assert [int(did[-1]) for did in [*old.did[1:], *new.did]] == [1, 2, 2, 3, 3]


@pytest.mark.parametrize("service", [None, "shop"])
@pytest.mark.parametrize("from_a_step", [False, True])
async def test_q68_a_message_that_the_old_name_has_handled_starts_nothing(
    database_url: str, service: str | None, from_a_step: bool
) -> None:
    old = Version(database_url, "order")
    waits = launcher(database_url)
    await old.app.announce()
    if from_a_step:
        await launched_and_waited_for(database_url, waits)
    else:
        await waits.launch("orders", 1)
    (row,) = ask(database_url, "select message_id::text, topic, body, headers from outbox")
    again = Envelope(row[0], row[1], "k", bytes(row[2]), "application/json", row[3])
    async with old.app.running():
        await until(lambda: ask(database_url, "select state from run where saga = 'order'") == [("committed",)])
    new = Version(database_url, "place-order", formerly=["order"])
    await new.app.announce()
    async with service_of(new.app).home.driver() as driver:
        assert await driver.run(take_in([again], service_of(new.app).hints, service=service)) == []
    assert ask(database_url, "select count(*) from run where saga <> 'launcher'") == [(1,)]
    await new.app.close()
    await waits.close()


@pytest.mark.parametrize("service", [None, "shop"])
async def test_q80_what_old_code_launches_while_the_names_change_is_handled_once(
    database_url: str, service: str | None
) -> None:
    """A launch that saw the old subscription, and committed only after it had been taken over."""
    await announced(Version(database_url, "order", ordered=True))
    waits = launcher(database_url)
    new = Version(database_url, "place-order", formerly=["order"], ordered=True)
    handle = await launched_and_waited_for(database_url, waits)
    ask(database_url, "update child set state = 'committed', open = false returning 1")  # hidden from the announcement
    await new.app.announce()
    ask(database_url, "update child set state = 'waiting', open = true returning 1")
    (row,) = ask(database_url, "select message_id::text, topic, body, headers from outbox")
    message = Envelope(row[0], row[1], "k", bytes(row[2]), "application/json", row[3])
    async with service_of(new.app).home.driver() as driver:
        for _ in range(2):
            assert await driver.run(take_in([message], service_of(new.app).hints, service=service)) == []
    assert ask(database_url, "select saga, late, lane is null from run where saga <> 'launcher'") == [
        ("order", False, False)
    ]
    async with new.app.running(), waits.running(relay=False):
        await handle.wait(20)
    assert new.did == ["place-order first 1", "place-order second 1"]


async def test_q80_old_code_that_starts_again_takes_its_name_back_and_nothing_is_done_twice(database_url: str) -> None:
    old, new = Version(database_url, "order"), Version(database_url, "place-order", formerly=["order"])
    waits = launcher(database_url)
    await announced(Version(database_url, "order"))
    async with new.app.running(relay=False):
        assert subscribed(database_url) == {"place-order"}
        async with old.app.running(), waits.running(relay=False):
            assert subscribed(database_url) == {"order"}
            for number in range(20):
                await (await waits.launch("begin", number)).wait(20)
    done = [did.split(" ", 1)[1] for did in [*old.did, *new.did]]
    assert sorted(done) == sorted(f"{step} {number}" for step in ("first", "second") for number in range(20))
    # And the last one to be started has it.
    await announced(Version(database_url, "place-order", formerly=["order"]))
    assert subscribed(database_url) == {"place-order"}


async def test_q80_going_back_for_good_is_a_renaming_the_other_way(database_url: str) -> None:
    await announced(Version(database_url, "order"))
    await announced(Version(database_url, "place-order", formerly=["order"]))
    waits = launcher(database_url)
    handle = await launched_and_waited_for(database_url, waits)
    back = Version(database_url, "order", formerly=["place-order"])
    async with back.app.running(), waits.running(relay=False):
        await handle.wait(20)
    assert back.did == ["order first 1", "order second 1"]
    assert subscribed(database_url) == {"order"}


async def test_q68_sagas_side_by_side_are_not_the_same_whatever_they_were_called(database_url: str) -> None:
    await announced(Version(database_url, "order"))
    await announced(Version(database_url, "place-order", formerly=["order"]))
    both = Version(database_url, "place-order")
    both.app.saga("order", on="orders").add_step("only", lambda scope, message: None)
    async with both.app.running():
        await (await both.app.launch("orders", 1)).wait(20)
    assert subscribed(database_url) == {"order", "place-order"}
    assert ask(database_url, "select saga from run order by saga") == [("order",), ("place-order",)]


async def test_q68_whoever_waits_for_a_root_waits_for_whatever_its_saga_is_called_now(database_url: str) -> None:
    broker = FakeBroker()
    await announced(Version(database_url, "order", broker=broker))
    new = Version(database_url, "place-order", formerly=["order"], broker=broker)
    handle = await new.app.launch("orders", 1)
    # It knows its own name, and the home knows the old one.
    assert ask(database_url, "select sagas from expected_root") == [(["order", "place-order"],)]
    (row,) = ask(database_url, "select message_id::text, topic, body, headers from outbox")
    async with new.app.running(relay=False):
        with pytest.raises(TimeoutError):
            await handle.wait(0.2)
        async with service_of(new.app).home.driver() as driver:
            one = Envelope(row[0], row[1], "k", bytes(row[2]), "application/json", row[3])
            await driver.run(take_in([one], service_of(new.app).hints, service="shop"))
        await handle.wait(20)
    assert new.did == ["place-order first 1", "place-order second 1"]


async def test_q68_no_more_is_taken_over_at_once_than_fits(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoop_outbox.core.plans.subscriptions.TAKEN_OVER_AT_ONCE", 2)
    old = Version(database_url, "order")
    async with old.app.running(worker=False):
        handles = [await old.app.launch("orders", number) for number in range(5)]
        await until(lambda: ask(database_url, "select count(*) from run") == [(5,)])
    new = Version(database_url, "place-order", formerly=["order"])
    await new.app.announce()
    assert ask(database_url, "select count(*) from run where saga = 'place-order'") == [(2,)]
    async with new.app.running():
        for handle in handles:
            await handle.wait(20)
    assert len(new.did) == 10
    assert {run.state for handle in handles for run in (await new.app.status(handle.id)).runs} == {RunState.COMMITTED}
    await new.app.close()
