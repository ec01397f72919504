"""Operators and callers see what is known here of runs that live in other homes."""

import json
import re
import uuid
from collections.abc import Iterator

import pytest

from scoop_outbox import DistributedError, Scoop
from scoop_outbox.app import service_of
from scoop_outbox.core.run import ChildState
from scoop_outbox.operations.runs import Cause, Runs
from tests.homes.conftest import MakeHome
from tests.homes.homes import running
from tests.integration import seeing
from tests.integration.seeing import ask, printed
from tests.integration.test_show import AT, ID, TOOK, fits
from tests.scenarios.shop import LONG, Gate, Shop, launches, raises
from tests.waiting import until

STOCK = uuid.UUID(int=7)
"""A home that has said that it listens, and nothing else."""
NOT_STARTED = r"take \(stock\): in home stock: not started, as far as is known"
AGO = r"\d+\.\d s"


@pytest.fixture
def runs(database_url: str) -> Iterator[Runs]:
    with Runs(database_url) as opened:
        yield opened


def heard_of_stock(url: str, name: str | None = "stock") -> None:
    """Let the home know that saga `take` of service `stock` listens on `reserve` in another one."""
    if name is not None:
        ask(url, "insert into peer (id, name, reply_to, revision) values (%s, %s, 'control.stock', 1)", STOCK, name)
    ask(
        url,
        "insert into peer_subscription (home, topic, service, saga) values (%s, 'reserve', 'stock', 'take')",
        STOCK,
    )


async def child_in_stock(url: str) -> tuple[uuid.UUID, uuid.UUID]:
    """A run that waits for a child in another home, which nobody has told of it: both messages."""
    app = Scoop("shop", database=url, home="orders")
    app.saga("place-order", on="orders").add_step("reserve", seeing.launches("reserve"))
    async with app.running(worker=False):
        handle = await app.launch("orders", 1)
        await until(lambda: ask(url, "select count(*) from run") == [(1,)])
    async with app.running(relay=False):
        await until(lambda: ask(url, "select count(*) from child") == [(1,)])
    ((child,),) = ask(url, "select message_id from child")
    return handle.id, child


def reported(url: str, state: str, *, run: uuid.UUID | None = None, is_open: bool = True) -> None:
    """Let the child be as if its home had reported it."""
    ask(
        url,
        "update child set generation = generation + 1, reported_at = clock_timestamp(), state = %s, open = %s, "
        "child_run = coalesce(%s, child_run)",
        *(state, is_open, run),
    )


async def test_a_child_of_which_nothing_was_heard(database_url: str, runs: Runs) -> None:
    heard_of_stock(database_url)
    message_id, child = await child_in_stock(database_url)
    assert fits(
        printed(database_url, "show", str(message_id)),
        rf"message {message_id}: topic orders, taken in {AT}",
        rf"place-order \(shop\): running, began {AT}, {TOOK} so far, run {ID}",
        rf"  1 reserve: committed, {TOOK}",
        rf"    {NOT_STARTED}, launched {AT}, {TOOK} ago, message {child}",
    )
    found = runs.show(message_id)
    assert (found.unstarted, found.ended) == ((), False)
    (one,) = found.elsewhere
    assert (one.home, one.state, one.open, one.launched_by, one.run_id) == ("stock", ChildState.WAITING, True, 1, None)
    assert one.parent == found.runs[0].id
    assert [below.elsewhere for below in (runs.show(found.runs[0].id),)] == [(one,)]
    assert fits(
        printed(database_url, "explain", str(message_id)),
        rf"run {ID} of saga 'place-order', .*: running, waits for 1 open child of step 'reserve' since {AGO}",
        rf"  waits for home 'stock': saga 'take' of service 'stock', nothing heard of it in {AGO}",
        rf"    - its message is in the outbox, on topic 'reserve', since {AT}",
        rf"    - home 'stock' knows what keeps it: scoop-outbox explain {child}, with the database of that home",
    )
    assert "\treserve (waits for home stock)\t" in printed(database_url, "runs")
    assert json.loads(printed(database_url, "runs", "--json"))["waits_for"] == ["stock"]


async def test_a_child_that_its_home_has_reported(database_url: str, runs: Runs) -> None:
    heard_of_stock(database_url)
    message_id, child = await child_in_stock(database_url)
    run_id = uuid.uuid4()
    reported(database_url, "started", run=run_id)
    assert "take (stock): in home stock: started, heard " in printed(database_url, "show", str(message_id))
    (_, one) = runs.explain(message_id).waiting
    assert re.fullmatch(rf"waits for home 'stock': .* 'stock', last heard 'started' {AGO} ago", one.text)
    assert (one.run_id, one.message_id, one.home, one.state) == (run_id, child, "stock", None)
    assert [reason.cause for reason in one.reasons] == [Cause.HOME]
    assert f"explain {run_id}" in one.reasons[0].text
    reported(database_url, "rolling_back")
    assert runs.explain(message_id).waiting[1].text.startswith("waits for home 'stock' to roll back: saga 'take'")
    reported(database_url, "cancelling")
    assert runs.explain(message_id).waiting[1].text.startswith("cancelled; waits for home 'stock' to confirm: saga")
    assert "in home stock: cancelled, not confirmed yet, heard " in printed(database_url, "show", str(message_id))
    reported(database_url, "committed", is_open=False)
    assert [one.home for one in runs.explain(message_id).waiting] == [None]


async def test_a_home_that_is_silent_or_unknown(database_url: str, runs: Runs) -> None:
    heard_of_stock(database_url)
    message_id, _ = await child_in_stock(database_url)
    reported(database_url, "started")

    def told() -> tuple[Cause, str]:
        reason = runs.explain(message_id).waiting[1].reasons[0]
        return reason.cause, reason.text

    assert told()[0] is Cause.HOME
    ask(database_url, "update peer set heard_at = clock_timestamp() - interval '42 min'")
    assert told() == (Cause.HOME_SILENT, "home 'stock' was last heard of 42 min ago")
    ask(database_url, "delete from peer")
    assert told() == (Cause.HOME_UNKNOWN, "no home of this id is known here")
    waiting = runs.explain(message_id).waiting[1]
    assert (waiting.home, runs.list()[0].waits_for) == (str(STOCK), (str(STOCK),))
    assert waiting.text.startswith(f"waits for home {STOCK}: saga 'take'")
    assert f"take (stock): in home {STOCK}: started" in printed(database_url, "show", str(message_id))


async def test_whoever_waits_too_long_is_told_of_the_home(database_url: str) -> None:
    heard_of_stock(database_url)
    message_id, _ = await child_in_stock(database_url)
    ask(database_url, "update peer set heard_at = clock_timestamp() - interval '42 min'")
    app = Scoop("shop", database=database_url)
    with pytest.raises(TimeoutError) as caught:
        await app.handle(message_id).wait(0.1)
    await app.close()
    lines = str(caught.value).splitlines()
    expected = (
        rf"- waits for home 'stock': saga 'take' of service 'stock', nothing heard of it in {AGO}; home 'stock' was .*"
    )
    assert re.fullmatch(expected, lines[-1])
    assert "not been taken in" not in str(caught.value)


async def test_what_another_home_alone_handles(database_url: str, runs: Runs) -> None:
    """A message from outside: there is no run here, and it is not missing."""
    heard_of_stock(database_url)
    app = Scoop("shop", database=database_url, home="orders")
    app.saga("place-order", on="orders").add_step("reserve", seeing.nothing)
    await app.announce()
    handle = await app.launch("reserve", 1)
    ask(database_url, "insert into expected_root values (%s, '{}', '{}') on conflict do nothing", handle.id)
    status = await app.status(handle.id)
    assert ([one.home for one in status.elsewhere], status.runs, status.ended) == (["stock"], (), False)
    ask(database_url, "delete from outbox")
    assert fits(
        printed(database_url, "show", str(handle.id)),
        rf"message {handle.id}: ",
        rf"{NOT_STARTED}, nothing heard of it, message {handle.id}",
    )
    with pytest.raises(
        TimeoutError, match=r"waits for home 'stock': saga 'take' of service 'stock', nothing heard of it$"
    ):
        await handle.wait(0.01)
    reported(database_url, "committed", is_open=False)
    assert runs.show(handle.id).ended
    assert (await app.status(handle.id)).ended
    await app.close()


async def test_both_sides_of_a_hierarchy_name_the_other_home(make_home: MakeHome) -> None:
    orders, stock, gate = make_home("orders"), make_home("stock"), Gate()
    orders.saga("root", "R", None, launches("C"))
    stock.saga("child", "C", gate, raises("out of stock"))
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        await until(lambda: orders.ask("select from scoop_outbox.child where state = 'started'"), LONG)
        (child,) = (await orders.status(handle)).elsewhere
        assert (child.home, child.saga, child.state, child.open) == ("stock", "child", ChildState.STARTED, True)
        assert child.run_id is not None
        with pytest.raises(TimeoutError, match=r"waits for home 'stock': saga 'child' of .*, last heard 'started'"):
            await handle.wait(0.1)
        assert "child (stock): in home stock: started, heard" in shown(orders, handle.id)
        run = rf"^child \(stock\): running, .* run {child.run_id}, for home orders$"
        assert re.search(run, shown(stock, child.run_id), re.MULTILINE)
        explained = printed(service_of(stock.app).home.url, "explain", str(child.run_id))
        assert f"run {child.run_id} of saga 'child', service 'stock', for home 'orders': running" in explained
        gate.open = True
        with pytest.raises(DistributedError):
            await handle.wait(LONG)
    (child,) = (await orders.status(handle)).elsewhere
    assert (child.state, child.open) == (ChildState.ROLLED_BACK, False)
    assert child.failure is not None
    assert "  failure: RuntimeError: out of stock" in shown(orders, handle.id)


def shown(shop: Shop, sought: uuid.UUID) -> str:
    """What `scoop-outbox show` prints."""
    return printed(service_of(shop.app).home.url, "show", str(sought))
