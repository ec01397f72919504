"""What a caller who waits is told: the result, the root cause, or where things stand."""

import asyncio
import re
import threading
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from scoop_outbox import DistributedError, Handle, Result, Retry, RunStatus, Scoop, UnknownMessage
from scoop_outbox.app import service_of
from scoop_outbox.progress import read_standing
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Shop, launches, nothing, raises
from tests.waiting import until

WAYS = ("wait", "wait_sync")


async def ask(handle: Handle, way: str, limit: float = LONG) -> Any:
    if way == "wait":
        return await handle.wait(limit)
    return await asyncio.to_thread(handle.wait_sync, limit)


def leaves(*values: Any) -> Any:
    def body(scope: Any, message: Any) -> None:
        for value in values:
            scope.set_result(value)

    return body


VALUES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "nothing": ((), None),
    "None": ((None,), None),
    "a list": (([1, 2],), [1, 2]),
    "an empty list": (([],), []),
    "false": ((False,), False),
    "text": (("größe\0\ud800",), "größe\0\ud800"),
    "the last of two": ((1, {"a": {"b": 2}}), {"a": {"b": 2}}),
}


@pytest.mark.parametrize("way", WAYS)
async def test_point_8_wait_returns_the_result_of_the_saga(mixed: Shop, way: str) -> None:
    for topic, (values, _) in VALUES.items():
        mixed.saga(f"saga of {topic}", topic, leaves(*values), None)
    async with mixed.running():
        for topic, (_, expected) in VALUES.items():
            assert await ask(await mixed.app.launch(topic, None), way) == expected, topic


async def test_point_8_a_result_that_a_later_step_leaves_counts(shop: Shop) -> None:
    """It is known when all that was launched has ended, and it is not that of a child."""
    shop.saga("root", "R", leaves("early"), launches("C"), leaves("late"))
    shop.saga("child", "C", leaves("of the child"))
    async with shop.running():
        assert await (await shop.app.launch("R", None)).wait(LONG) == "late"


@pytest.mark.everywhere
@pytest.mark.parametrize("way", WAYS)
async def test_point_8_several_sagas_leave_a_list(make_shop: MakeShop, way: str) -> None:
    """Also of several services, which over a broker take the message in at different times."""
    one, other = make_shop(service="a-shop"), make_shop(service="b-shop")
    one.saga("z", "R", leaves({"z": 1}))
    one.saga("quiet", "R", None)
    other.saga("b", "R", leaves("b"))
    async with one.running(), other.running():
        handle = await one.app.launch("R", None)
        results = await ask(handle, way)
    assert results == [Result("z", handle.id, {"z": 1}), Result("b", handle.id, "b")]


@pytest.mark.everywhere
@pytest.mark.parametrize("way", WAYS)
async def test_point_8_nobody_leaves_nothing(mixed: Shop, way: str) -> None:
    async with mixed.running():
        assert await ask(await mixed.app.launch("nobody", None), way) is None


async def test_point_8_who_waits_at_the_same_time_gets_a_value_of_his_own(mixed: Shop) -> None:
    mixed.saga("root", "R", leaves([1]))
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        one, other = await asyncio.gather(handle.wait(LONG), handle.wait(LONG))
        one.append(2)
        assert other == [1]
        assert await mixed.app.handle(handle.id).wait(0) == [1]


# -- the root cause ---------------------------------------------------------------------------------------------------


class OutOfPallets(Exception):
    """What went wrong in the depot."""


def pick(scope: Any, message: Any) -> None:
    try:
        dict[str, str]()["pallet"]
    except KeyError as missing:
        raise OutOfPallets("no pallet holds tea\nlook again tomorrow") from missing


@asynccontextmanager
async def chain(database_url: str, **stock: Any) -> AsyncIterator[Handle]:
    """An order that fails three services below."""
    orders, goods, depot = (Scoop(name, database=database_url) for name in ("orders", "stock", "depot"))
    orders.saga("place", on="orders").add_step("ask stock", launches("stock"))
    goods.saga("reserve", on="stock").add_step("ask", launches("pick"), **stock)
    picking = depot.saga("pick", on="pick")
    picking.add_step("look", nothing)
    picking.add_step("take", pick)
    async with orders.running(), goods.running(), depot.running():
        yield await orders.launch("orders", None)


ROOT = rf"root cause {re.escape(__name__)}\.OutOfPallets: no pallet holds tea\.\.\. "
PLACE = r"\(service 'depot', saga 'pick', step 'take'\)"
ABOVE = r"\[place\[[0-9a-f-]{36}\]\] ChildRolledBack: Child failure occurred while suspended in step \[ask stock\]"


@pytest.mark.parametrize("way", WAYS)
async def test_point_8_the_text_of_what_wait_raises_names_the_root_cause(database_url: str, way: str) -> None:
    async with chain(database_url) as handle:
        with pytest.raises(DistributedError) as caught:
            await ask(handle, way)
    assert re.fullmatch(f"{ROOT}{PLACE}; {ABOVE}", str(caught.value))
    assert caught.value.root_cause.type.endswith("OutOfPallets")


async def test_point_8_a_handler_that_raises_something_else_hides_nothing(database_url: str) -> None:
    def instead(scope: Any, message: Any, error: Exception) -> None:
        assert re.match(rf"{ROOT}\(saga 'pick'\); \[reserve\[", str(error))
        raise RuntimeError("cannot reserve")

    async with chain(database_url, on_child_failure=instead) as handle:
        with pytest.raises(DistributedError) as caught:
            await handle.wait(LONG)
    assert re.fullmatch(f"{ROOT}{PLACE}; {ABOVE}", str(caught.value))


async def test_point_8_a_failure_of_its_own_is_told_with_its_place(mixed: Shop) -> None:
    mixed.saga("root", "R", None, raises("boom"))
    async with mixed.running():
        with pytest.raises(DistributedError) as caught:
            await (await mixed.app.launch("R", None)).wait(LONG)
    expected = r"\[root\[[0-9a-f-]{36}\]\] RuntimeError: boom \(service 'shop', saga 'root', step '1'\)"
    assert re.fullmatch(expected, str(caught.value))


@pytest.mark.one_home("what is told is what one home knows")
async def test_point_8_several_failures_are_each_named(mixed: Shop) -> None:
    mixed.saga("a", "R", raises("boom a"))
    mixed.saga("b", "R", launches("C"))
    mixed.saga("c", "C", raises("boom c"))
    async with mixed.running():
        with pytest.raises(ExceptionGroup) as caught:
            await (await mixed.app.launch("R", None)).wait(LONG)
    text = caught.value.message
    assert text.startswith("2 sagas that handle the message failed: ")
    for saga in ("a", "c"):
        assert f"RuntimeError: boom {saga} (service 'shop', saga '{saga}', step '0')" in text


async def test_point_8_why_it_could_not_be_undone_is_the_root_cause(mixed: Shop) -> None:
    mixed.step(mixed.saga("root", "R"), "first", None, compensate=raises("stuck"))
    mixed.step(mixed.app.sagas["root"], "second", raises("boom"))
    _, error = await mixed.fail("R")
    assert re.fullmatch(
        r"\[root\[[0-9a-f-]{36}\]\] RuntimeError: stuck \(service 'shop', saga 'root', step 'first'\)", str(error)
    )


# -- where it stands --------------------------------------------------------------------------------------------------

ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
AGE = r"since \d+\.\d s"


async def late(handle: Handle, way: str = "wait", limit: float = 0.0) -> list[str]:
    """The lines of what who waits too long is told, behind the first one."""
    with pytest.raises(TimeoutError) as caught:
        await ask(handle, way, limit)
    first, *lines = str(caught.value).splitlines()
    assert re.fullmatch(
        rf"message {handle.id} has not been handled within {limit:g} s; it goes on all the same\. What is open:",
        first,
    )
    return lines


def runs_of(shop: Shop, handle: Handle) -> Sequence[RunStatus]:
    try:
        return shop.app.status_sync(handle.id).runs
    except UnknownMessage:
        return ()


def fits(lines: list[str], *patterns: str) -> bool:
    return len(lines) == len(patterns) and all(map(re.fullmatch, patterns, lines))


@pytest.mark.one_home("what is told is what one home knows")
@pytest.mark.parametrize("way", WAYS)
async def test_point_8_what_has_not_been_taken_in_is_told(mixed: Shop, way: str) -> None:
    mixed.saga("root", "R", None)
    handle = await mixed.app.launch("R", None)
    lines = await late(handle, way, 0.05)
    on_its_way = "has not been taken in: its transaction is not committed, or it is in the outbox"
    assert lines == [f"- message {handle.id} {on_its_way}; no relay is alive"]
    async with mixed.running(worker=False):
        await until(lambda: runs_of(mixed, handle))
        expected = (
            rf"- run {ID} of saga 'root', service 'shop': running, has its first step due or at work {AGE}; "
            "no worker of service 'shop' is alive"
        )
        assert fits(await late(handle, way), expected)
        unknown = mixed.app.handle(uuid.uuid4())
        assert await late(unknown, way) == [f"- message {unknown.id} {on_its_way}"]


@pytest.mark.one_home("what is told is what one home knows")
@pytest.mark.everywhere
async def test_point_8_for_whom_a_message_is_on_its_way_is_told(make_shop: MakeShop, database_url: str) -> None:
    """Over a broker each service takes in by itself: one has handled the message, and another one is down."""
    here, away = make_shop(service="here"), make_shop(service="away")
    here.saga("a", "R", None)
    away.saga("b", "R", None)
    async with away.running(worker=True):
        pass
    async with here.running():
        handle = await here.app.launch("R", None)
        await until(lambda: [run.state.ended for run in runs_of(here, handle) if run.service == "here"] == [True])
        (line,) = await late(handle)
    if service_of(here.app).broker is None:  # it takes in for all at once
        begun = "running, has its first step due or at work"
        assert re.fullmatch(
            rf"- run {ID} of saga 'b', service 'away': {begun} {AGE}; no worker of service 'away' is alive", line
        )
        return
    told = f"- message {handle.id} has not been taken in for saga 'b' of service 'away': "
    assert line == f"{told}it is in the outbox or at the broker"
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "insert into scoop_outbox.dead_letter "
            "(message_id, topic, body, content_type, headers, origin, reason, service) "
            "values (%s, 'R', '', '', '{}', 'intake', 'why', 'away')",
            [handle.id],
        )
    async with here.running():
        assert await late(handle) == [f"{told}it is dead letter 1, see scoop-outbox dead-letters show 1"]


@pytest.mark.one_home("what is told is what one home knows")
async def test_point_8_what_everything_waits_for_comes_first(mixed: Shop) -> None:
    going = threading.Event()

    def slow(scope: Any, message: Any) -> Any:
        yield going.is_set

    mixed.saga("root", "R", launches("M", "M"))
    mixed.saga("middle", "M", None, launches("L"))
    mixed.saga("leaf", "L", None, slow)
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: mixed.journal.count("leaf-1") == 2)
        leaf = rf"- run {ID} of saga 'leaf', service 'shop': running, has step '1' due or at work {AGE}"
        middle = rf"- run {ID} of saga 'middle', service 'shop': running, waits for 1 open child of step '1' {AGE}"
        root = rf"- run {ID} of saga 'root', service 'shop': running, waits for 2 open children of step '0' {AGE}"
        lines = await late(handle)
        assert fits(lines[:2], leaf, leaf)
        assert sum(bool(re.fullmatch(middle, line)) for line in lines) == 2
        assert sum(bool(re.fullmatch(root, line)) for line in lines) == 1
        assert len(lines) == 5
        going.set()
        await handle.wait(LONG)


@pytest.mark.one_home("what is told is what one home knows")
async def test_point_8_no_more_is_told_than_is_read(mixed: Shop) -> None:
    mixed.saga("root", "R", launches(*["C"] * 30))
    mixed.app.saga("child", on="C").add_step("only", nothing)
    absent = Scoop("absent", database=service_of(mixed.app).home.url)
    absent.saga("elsewhere", on="C").add_step("only", nothing)
    await absent.announce()
    await absent.close()
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: [run.state.ended for run in runs_of(mixed, handle)].count(True) == 30)
        lines = await late(handle)
    elsewhere = (
        rf"- run {ID} of saga 'elsewhere', service 'absent': running, has its first step due or at work {AGE}; "
        "no worker of service 'absent' is alive"
    )
    assert fits(lines, *[elsewhere] * 5, r"- and 26 more: app\.status\(\) shows all of it")


async def test_point_8_a_run_that_is_tried_again_parked_or_rolling_back_says_so(mixed: Shop) -> None:
    going = threading.Event()

    def slow(scope: Any, message: Any, error: Exception) -> Any:
        yield going.is_set

    mixed.step(mixed.saga("tries", "T"), "flaky", raises("boom"), retry=Retry(attempts=2, backoff=600.0))
    mixed.step(mixed.saga("undoes", "U"), "first", None, compensate=slow)
    mixed.step(mixed.app.sagas["undoes"], "second", raises("boom"))
    async with mixed.running():
        tries, undoes = await mixed.app.launch("T", None), await mixed.app.launch("U", None)
        await until(lambda: mixed.journal.count("tries-flaky") == 1 and mixed.journal.count("undoes-rbfirst") == 1)

        async def told() -> bool:
            pattern = rf"- run {ID} of saga 'tries', .*: running, has its first step due or at work {AGE}; "
            return fits(await late(tries), pattern + r"it is tried again in \d+\.\d s")

        await until(told)
        assert fits(await late(undoes), rf"- run {ID} of saga 'undoes', .*: rolling_back, is due or at work {AGE}")
        going.set()


@pytest.mark.one_home("what is told is what one home knows")
async def test_point_8_waiting_costs_nothing_more(mixed: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where things stand is read once it is told, and not while somebody waits."""
    asked: list[uuid.UUID] = []

    def counted(message_id: uuid.UUID) -> Any:
        asked.append(message_id)
        return read_standing(message_id)

    monkeypatch.setattr("scoop_outbox.client.handle.read_standing", counted)
    mixed.saga("root", "R", None)
    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        for way in WAYS:
            await ask(handle, way)
    assert asked == []
    late_one = await mixed.app.launch("nowhere to be taken in", None)
    for way in WAYS:
        await late(late_one, way, 0.05)
    assert asked == [late_one.id] * 2
