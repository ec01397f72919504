"""UR: parts of hierarchies are undone on request whose runs above live in other homes, and may go on meanwhile."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from functools import partial
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from scoop_outbox import ActiveRun, Answer, DistributedError, Handle, RollbackAnswer, RunState
from scoop_outbox.app import service_of
from scoop_outbox.cli import main
from scoop_outbox.core.plans import ancestors
from scoop_outbox.daemon.worker import roster
from tests.homes.conftest import MakeHome
from tests.homes.homes import running
from tests.scenarios.shop import LONG, Gate, Journal, Shop, launches
from tests.waiting import until


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers look around them more often."""
    monkeypatch.setattr(roster, "EVERY", 0.2)


async def run_of(shop: Shop, saga: str) -> tuple[uuid.UUID, uuid.UUID]:
    """The only run of a saga, and its message."""

    async def found() -> Any:
        return await shop.ask("select id, message_id from scoop_outbox.run where saga = %s", saga)

    await until(found, LONG)
    ((run, message),) = await found()
    return run, message


async def is_in(shop: Shop, run: uuid.UUID, state: RunState) -> bool:
    return await shop.ask("select from scoop_outbox.run where id = %s and state = %s", run, state.value) != []


async def heard(shop: Shop, state: str) -> bool:
    """Whether another home has told this one that a child is in a state."""
    return await shop.ask("select from scoop_outbox.child where state = %s and home is not null", state) != []


async def has_ended(handle: Handle) -> None:
    try:
        await handle.wait(LONG)
    except DistributedError:
        return


async def test_ur_03_who_is_asked_for_a_part_asks_the_homes_above(
    make_home: MakeHome, journal: Journal, impatient: None
) -> None:
    orders, stock, audit, gate = make_home("orders"), make_home("stock"), make_home("audit"), Gate()
    orders.saga("root", "R", launches("C"), gate)
    stock.saga("child", "C", launches("G"))
    audit.saga("grandchild", "G", None)
    async with running(orders, stock, audit):
        handle = await orders.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        root = (await orders.only(handle, "root")).id
        (child, _), (grandchild, message) = await run_of(stock, "child"), await run_of(audit, "grandchild")
        refused = RollbackAnswer(Answer.REFUSED_ACTIVE, (ActiveRun(root, "orders", "root", "running"),))
        # Its parent has ended, and has a parent in a home that only its own home knows.
        for if_active in ("refuse", "cancel"):
            assert await audit.app.rollback(grandchild, if_active=if_active) == refused
        assert await stock.app.rollback(child) == refused
        assert await stock.app.rollback(message) == refused  # which it has launched
        assert await audit.app.rollback(message) == RollbackAnswer(Answer.ASK_ELSEWHERE, home="stock")
        assert await audit.app.rollback(grandchild, reason="why", if_active="wait") == Answer.ACCEPTED
        assert await audit.app.rollback(grandchild) == Answer.ALREADY_REQUESTED
        gate.open = True
        await handle.wait(LONG)
        await until(lambda: is_in(audit, grandchild, RunState.ROLLED_BACK), LONG)
        assert await audit.app.rollback(grandchild) == Answer.ALREADY_ROLLED_BACK
        await until(lambda: heard(stock, "rolled_back"), LONG)
        # That all above have ended stays true: nobody is asked again.
        assert await stock.app.rollback(child) == Answer.ACCEPTED
        await until(lambda: is_in(stock, child, RunState.ROLLED_BACK), LONG)
        assert await handle.wait(LONG) is None
    assert journal == ["root-0", "child-0", "grandchild-0", "root-1", "grandchild-rb0", "child-rb0"]
    assert await audit.ask("select count(*) from scoop_outbox.dead_letter") == [(0,)]


async def test_ur_10_a_message_of_a_step_is_not_undone_in_other_homes_while_the_step_s_run_goes_on(
    make_home: MakeHome, journal: Journal
) -> None:
    orders, stock, gate = make_home("orders"), make_home("stock"), Gate()
    orders.saga("root", "R", launches("C"), gate)
    stock.saga("child", "C", None)
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        _, message = await run_of(stock, "child")
        root = await orders.only(handle, "root")
        answered = await orders.app.rollback(message)
        assert answered == RollbackAnswer(Answer.REFUSED_ACTIVE, (ActiveRun(root.id, "orders", "root", "running"),))
        gate.open = True
        await handle.wait(LONG)
        assert await orders.app.rollback(message) == Answer.ACCEPTED
        await until(lambda: heard(orders, "rolled_back"), LONG)
    assert journal == ["root-0", "child-0", "root-1", "child-rb0"]


async def test_nothing_is_ordered_while_somebody_decides_about_the_parent(
    make_home: MakeHome, journal: Journal, impatient: None
) -> None:
    """Whoever holds the parent's row may be about to count what other homes have said of its children."""
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", launches("C"))
    stock.saga("child", "C", None)
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        await handle.wait(LONG)
        _, message = await run_of(stock, "child")
        async with await psycopg.AsyncConnection.connect(service_of(orders.app).home.url) as deciding:
            await deciding.execute("select from scoop_outbox.run for update")
            assert await orders.app.rollback(message) == Answer.ACCEPTED  # it waits
            assert await heard(orders, "committed")
        await until(lambda: heard(orders, "rolled_back"), LONG)
    assert journal == ["root-0", "child-0", "child-rb0"]


async def test_who_gets_no_answer_from_above_undoes_nothing_and_says_so(
    make_home: MakeHome, journal: Journal, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", launches("C"))
    stock.saga("child", "C", None)
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        await handle.wait(LONG)
        child, _ = await run_of(stock, "child")
    async with stock.running():  # and nobody of the home above
        with monkeypatch.context() as patience:
            patience.setattr(ancestors, "PAUSES", (0.01,))
            unanswered = RollbackAnswer(Answer.UNANSWERED, home="orders")
            assert await stock.app.rollback(child) == unanswered
            arguments = ["rollback", str(child), "--database", service_of(stock.app).home.url]
            told = await asyncio.to_thread(CliRunner().invoke, main, arguments)
            assert (told.exit_code, told.output) == (1, f"{child}\tunanswered\n  home orders\n")
        assert await stock.app.rollback(child, if_active="wait") == Answer.ACCEPTED
        assert journal == ["root-0", "child-0"]
        async with orders.running():
            await until(lambda: is_in(stock, child, RunState.ROLLED_BACK), LONG)
    assert journal == ["root-0", "child-0", "child-rb0"]


async def test_a_home_that_was_forgotten_is_not_asked(make_home: MakeHome, journal: Journal) -> None:
    orders, stock = make_home("orders"), make_home("stock")
    orders.saga("root", "R", launches("C"))
    stock.saga("child", "C", None)
    async with running(orders, stock):
        await (await orders.app.launch("R", None)).wait(LONG)
        child, message = await run_of(stock, "child")
    await stock.execute("delete from scoop_outbox.peer")
    async with stock.running():
        assert await stock.app.rollback(message) == Answer.ACCEPTED
        await until(lambda: is_in(stock, child, RunState.ROLLED_BACK), LONG)
    assert journal == ["root-0", "child-0", "child-rb0"]


async def test_a_part_is_undone_or_not_while_its_parent_ends_but_its_parent_never_hears_of_it(
    make_home: MakeHome, journal: Journal
) -> None:
    """Each root commits at about the moment at which somebody asks for one of its children, and waits for the other."""
    orders, stock, gates = make_home("orders"), make_home("stock"), [Gate() for _ in range(12)]

    def holds(_: object, message: Any) -> Any:
        yield from gates[message.payload]()

    def both(scope: Any, message: Any) -> None:
        scope.launch("C", None)
        scope.launch("D", message.payload)

    orders.saga("root", "R", both)
    orders.saga("slow", "D", holds)
    stock.saga("child", "C", None)
    chance = random.Random(1)

    async def ends(gate: Gate) -> None:
        await asyncio.sleep(chance.random() / 2)
        gate.open = True

    async with running(orders, stock):
        handles = [await orders.app.launch("R", number) for number in range(len(gates))]
        await until(lambda: all(gate.entered for gate in gates) and journal.count("child-0") == len(gates), LONG)
        runs = [run for (run,) in await stock.ask("select id from scoop_outbox.run where saga = 'child' order by id")]
        asked = asyncio.gather(*(stock.app.rollback(run) for run in runs))
        await asyncio.gather(*map(ends, gates))
        answers = Counter(one.answer for one in await asked)
        for handle in handles:
            await handle.wait(LONG)  # none has failed
        again = [one.answer for one in await asyncio.gather(*(stock.app.rollback(run) for run in runs))]
        assert set(answers) <= {Answer.ACCEPTED, Answer.REFUSED_ACTIVE}
        assert again.count(Answer.ACCEPTED) == answers[Answer.REFUSED_ACTIVE]
        for run in runs:
            await until(partial(is_in, stock, run, RunState.ROLLED_BACK), LONG)
        states = await orders.ask("select state, count(*) from scoop_outbox.run where saga = 'root' group by state")
        assert states == [("committed", len(gates))]
    assert journal.count("child-rb0") == len(gates)


async def test_the_whole_and_its_parts_are_undone_at_the_same_time_and_everything_once(
    make_home: MakeHome, journal: Journal
) -> None:
    """Whoever asks, in whatever home, knows nothing of what others ask elsewhere: news and orders are on their way."""
    orders, stock, audit = make_home("orders"), make_home("stock"), make_home("audit")
    shops, many = (orders, stock, audit), 8
    orders.saga("root", "R", launches("C", "C"))
    stock.saga("child", "C", launches("G"))
    audit.saga("grandchild", "G", None)
    async with running(*shops):
        handles = [await orders.app.launch("R", None) for _ in range(many)]
        for handle in handles:
            await handle.wait(LONG)
        parts = [(shop, run) for shop in shops for (run,) in await shop.ask("select id from scoop_outbox.run")]
        random.Random(2).shuffle(parts)
        await asyncio.gather(*(shop.app.rollback(run, if_active="wait") for shop, run in parts))
        for handle in handles:
            await has_ended(handle)
        for shop in shops:
            await until(partial(is_undone, shop), LONG)
    assert Counter(journal.entries) == {
        **{f"root-{one}": many for one in ("0", "rb0")},
        **{f"{saga}-{one}": 2 * many for saga in ("child", "grandchild") for one in ("0", "rb0")},
    }


async def is_undone(shop: Shop) -> bool:
    return await shop.ask("select from scoop_outbox.run where state <> 'rolled_back'") == []
