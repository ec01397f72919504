"""PROMISE-20, PROMISE-23, TP-10: when a saga's runs begin, whom they wait for, and when they give up, as users say."""

import logging
from collections.abc import Callable, Collection, Iterable
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from scoop_outbox import (
    AcknowledgedWithin,
    DefinitionError,
    DistributedError,
    OpenChild,
    Outlook,
    Participant,
    Retry,
    RunState,
    StaticTopology,
    Strategy,
)
from scoop_outbox.app import service_of
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Gate, Shop, launches, raises
from tests.waiting import until

SOON = timedelta(seconds=0.2)
ENOUGH = timedelta(seconds=3)
"""In which whoever is there starts, however busy the machine is."""


async def known(shop: Shop) -> None:
    """Have a service subscribe, and go."""
    async with shop.running():
        pass


@pytest.mark.everywhere
async def test_promise_23_who_has_not_started_in_time_is_left_behind_and_comes_late(
    make_shop: MakeShop, caplog: pytest.LogCaptureFixture
) -> None:
    def notes(scope: Any, _: Any) -> None:
        audit.journal(f"late {scope.late}")

    shop, audit = make_shop(), make_shop(service="audit")
    root = shop.app.saga("root", "R", strategy=AcknowledgedWithin(ENOUGH))
    shop.step(root, "0", launches("C"))
    shop.step(root, "1")
    shop.saga("here", "C", None)
    audit.saga("audit", "C", notes)
    await known(audit)

    with caplog.at_level(logging.WARNING):
        handle = await shop.run("R")
    assert [entry for entry in shop.journal.entries if "here" not in entry] == ["root-0", "root-1"]
    assert shop.journal.count("here-0") == 1
    (line,) = [one for one in caplog.messages if one.startswith("run: children were left behind")]
    assert line.endswith("step 0: not started: audit in audit)")

    async with audit.running():
        await until(lambda: audit.journal.count("late True"), LONG)
        await until(lambda: _committed(shop, handle, "audit"), LONG)
    run = await shop.only(handle, "audit")
    assert run.late


async def _committed(shop: Shop, handle: Any, saga: str) -> bool:
    return [run.state for run in await shop.runs(handle, saga)] == [RunState.COMMITTED]


async def test_promise_23_who_has_started_is_waited_for_however_long_it_takes(mixed: Shop) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R", strategy=AcknowledgedWithin(ENOUGH))
    mixed.step(root, "0", launches("C"))
    mixed.step(root, "1")
    mixed.saga("child", "C", None, gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        await until(lambda: _is_over(mixed, handle), LONG)
        gate.open = True
        await handle.wait(LONG)

    assert mixed.journal == ["root-0", "child-0", "child-1", "root-1"]


async def _is_over(shop: Shop, handle: Any) -> bool:
    over = "select from scoop_outbox.run where message_id = %s and clock_timestamp() > created_at + interval '4 s'"
    return bool(await shop.ask(over, handle.id))


async def test_promise_23_no_rollback_reaches_who_was_left_behind(make_shop: MakeShop) -> None:
    shop, audit = make_shop(), make_shop(service="audit")
    root = shop.app.saga("root", "R", strategy=AcknowledgedWithin(SOON))
    shop.step(root, "0", launches("C"))
    shop.step(root, "1", raises("no"))
    audit.saga("audit", "C", None)
    await known(audit)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        with pytest.raises(DistributedError, match="no"):
            await handle.wait(LONG)
    async with audit.running():
        await until(lambda: _committed(shop, handle, "audit"), LONG)

    assert shop.journal == ["root-0", "root-1", "root-rb0", "audit-0"]


async def test_promise_23_a_first_step_that_takes_long_is_waited_for_quietly(
    mixed: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R", strategy=AcknowledgedWithin(ENOUGH))
    mixed.step(root, "0", launches("C"))
    mixed.step(root, "1")
    mixed.saga("child", "C", gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        await until(lambda: _is_over(mixed, handle), LONG)
        (mails,) = await mixed.ask("select count(*) from scoop_outbox.mailbox")
        gate.open = True
        await handle.wait(LONG)

    assert mixed.journal == ["root-0", "child-0", "root-1"]
    assert mails[0] < 10  # each look had posted one more, hundreds in a second
    assert not [one for one in caplog.messages if "left behind" in one]


@pytest.mark.builtin("a relay without a worker takes in what is launched")
async def test_promise_23_who_is_taken_in_while_it_is_left_behind_does_not_vanish(make_shop: MakeShop) -> None:
    shop, relay, audit = make_shop(), make_shop(service="relay"), make_shop(service="audit")
    root = shop.app.saga("root", "R", strategy=AcknowledgedWithin(SOON))
    shop.step(root, "0", launches("C"))
    shop.step(root, "1")
    audit.saga("audit", "C", None)
    await known(audit)

    async with await psycopg.AsyncConnection.connect(service_of(shop.app).home.url, autocommit=True) as admin:
        await admin.execute(HOLDING)
        async with shop.running(worker=False):
            handle = await shop.app.launch("R", None)
            await until(lambda: shop.ask("select from scoop_outbox.run"), LONG)
        await admin.execute("select pg_advisory_lock(4711)")
        async with shop.running(relay=False):  # what it launches stays in the outbox
            await until(lambda: shop.ask("select from pg_locks where objid = 4711 and not granted"), LONG)
            async with relay.running(worker=False):
                await until(lambda: _intake_waits(shop), LONG)
                await admin.execute("select pg_advisory_unlock(4711)")
                await handle.wait(LONG)
        async with audit.running():
            await until(lambda: _committed(shop, handle, "audit"), LONG)

    assert (await shop.only(handle, "audit")).late


HOLDING = """
create function hold() returns trigger language plpgsql as $$
begin
    perform pg_advisory_xact_lock(4711);
    return new;
end $$;
create trigger hold after update on scoop_outbox.child for each row
when (new.state = 'left_behind') execute function hold();
"""


async def _intake_waits(shop: Shop) -> bool:
    return bool(
        await shop.ask(
            "select from pg_stat_activity "
            "where wait_event_type = 'Lock' and wait_event <> 'advisory' and datname = current_database()"
        )
    )


@pytest.mark.builtin("a relay without a worker takes in what is launched")
async def test_promise_23_a_run_that_gives_up_leaves_behind_who_has_not_started(make_shop: MakeShop) -> None:
    shop, audit = make_shop(), make_shop(service="audit")
    root = shop.app.saga("root", "R", strategy=AcknowledgedWithin(ENOUGH))
    shop.step(root, "0", launches("C"))
    audit.saga("audit", "C", None)
    await known(audit)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: shop.ask("select from scoop_outbox.child where state = 'started'"), LONG)
        await shop.app.cancel(handle.id, reason="enough", source="test")
        with pytest.raises(DistributedError):
            await handle.wait(LONG)

    assert shop.journal == ["root-0", "root-rb0"]


@pytest.mark.everywhere
async def test_tp_01_a_topology_waits_for_who_is_not_subscribed_yet(make_shop: MakeShop) -> None:
    shop, late = make_shop(), make_shop(service="late")
    root = shop.app.saga("root", "R", strategy=StaticTopology({"C": [("late", "child")]}))
    shop.step(root, "0", launches("C", "D"))
    shop.step(root, "1")
    late.saga("child", "C", None)
    shop.saga("other", "D", None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: shop.journal.count("other-0"), LONG)
        with pytest.raises(TimeoutError, match="child"):
            await handle.wait(0.5)
        assert "root-1" not in shop.journal.entries


async def test_tp_01_a_topology_need_not_wait_for_who_is_subscribed(mixed: Shop) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R", strategy=StaticTopology({"C": []}))
    mixed.step(root, "0", launches("C"))
    mixed.step(root, "1")
    mixed.saga("child", "C", gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: mixed.journal.count("root-1"), LONG)
        gate.open = True
        await until(lambda: _committed(mixed, handle, "child"), LONG)

    assert (await mixed.only(handle, "child")).late


class Patience(Strategy):
    """A deadline as a user writes one: gives up when a run has taken too long."""

    def __init__(self, patience: timedelta, ready: Callable[[], bool] = lambda: True) -> None:
        self.patience, self.ready = patience, ready

    def give_up(self, outlook: Outlook) -> str | None:
        over = outlook.now >= outlook.began_at + self.patience
        return "it took too long" if over and self.ready() else None

    def look_again(self, outlook: Outlook) -> datetime | None:
        return max(outlook.began_at + self.patience, outlook.now + SOON)


@pytest.mark.everywhere
async def test_promise_20_a_strategy_gives_up_while_the_run_waits(shop: Shop) -> None:
    gate = Gate()
    root = shop.app.saga("root", "R", strategy=Patience(SOON, lambda: gate.entered))
    shop.step(root, "0", launches("C"))
    shop.step(root, "1")
    shop.saga("child", "C", gate, None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        await until(lambda: _is_told(shop, handle), LONG)
        gate.open = True
        with pytest.raises(DistributedError) as caught:
            await handle.wait(LONG)

    assert shop.journal.of("root") == ["root-0", "root-rb0"]
    root_cause = caught.value.root_cause
    assert (root_cause.type, root_cause.message) == ("StrategyGaveUp", "it took too long")
    assert root_cause.source == "Patience of root"


async def _is_told(shop: Shop, handle: Any) -> bool:
    (child,) = await shop.runs(handle, "child")
    return bool(await shop.ask("select from scoop_outbox.request where target = %s", child.id))


class Cancellations(Strategy):
    """A cancellation as a user writes one: gives up what somebody has named."""

    def __init__(self) -> None:
        self.unwanted: set[Any] = set()

    def give_up(self, outlook: Outlook) -> str | None:
        return "nobody wants it" if outlook.message_id in self.unwanted else None


class Later(Patience):
    """Begins in an hour."""

    def begin(self, outlook: Outlook) -> datetime | None:
        return outlook.began_at + timedelta(hours=1)


@pytest.mark.parametrize("waits_for", ["its beginning", "a retry"])
async def test_promise_20_a_strategy_gives_up_whatever_the_run_waits_for(mixed: Shop, waits_for: str) -> None:
    beginning = waits_for == "its beginning"
    strategy = Later(SOON) if beginning else Patience(SOON, lambda: mixed.journal.count("root-0") > 0)
    root = mixed.app.saga("root", "R", strategy=strategy)
    mixed.step(root, "0", raises("no"), retry=Retry(attempts=2, backoff=3600, max_backoff=3600))

    _, error = await mixed.fail("R")

    assert error.root_cause.message == "it took too long"
    assert mixed.journal == ([] if beginning else ["root-0"])


async def test_promise_20_a_strategy_gives_up_between_two_steps(mixed: Shop) -> None:
    strategy = Cancellations()

    def is_unwanted(_: Any, message: Any) -> None:
        strategy.unwanted.add(message.id)

    root = mixed.app.saga("root", "R", strategy=strategy)
    mixed.step(root, "0", is_unwanted)
    mixed.step(root, "1")

    _, error = await mixed.fail("R")

    assert mixed.journal == ["root-0", "root-rb0"]
    assert error.root_cause.message == "nobody wants it"


async def test_tp_10_a_strategy_gives_the_rollback_up(mixed: Shop) -> None:
    class Hopeless(Strategy):
        """Gives every rollback up."""

        def give_up_rollback(self, outlook: Outlook) -> str | None:
            assert outlook.rolling_back
            return "it is no use"

    root = mixed.app.saga("root", "R", strategy=Hopeless())
    mixed.step(root, "0")
    mixed.step(root, "1", raises("no"))

    handle, error = await mixed.fail("R")

    assert mixed.journal == ["root-0", "root-1"]
    assert [cause.message for cause in error.causes][:1] == ["it is no use"]
    assert (await mixed.only(handle, "root")).state is RunState.ROLLBACK_FAILED


class NotBefore(Strategy):
    """Begins some time after the message was taken in."""

    def begin(self, outlook: Outlook) -> datetime | None:
        return outlook.began_at + SOON


async def test_tp_10_a_strategy_says_when_a_run_begins(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R", strategy=NotBefore())
    mixed.step(root, "0")
    mixed.step(root, "1")

    handle = await mixed.run("R")

    run = await mixed.only(handle, "root")
    assert run.steps[0].started_at >= run.created_at + SOON


async def test_tp_10_what_has_started_is_waited_for_whatever_a_strategy_says(mixed: Shop) -> None:
    class Impatient(Strategy):
        """Leaves everybody behind whom it may; it looks all the time."""

        looks = 0

        def leave_behind(self, outlook: Outlook) -> Iterable[OpenChild]:
            type(self).looks += 1
            return [] if not all(child.started for child in outlook.children) else outlook.children

        def look_again(self, outlook: Outlook) -> datetime | None:
            return outlook.now

    gate = Gate()
    root = mixed.app.saga("root", "R", strategy=Impatient())
    mixed.step(root, "0", launches("C"))
    mixed.step(root, "1")
    mixed.saga("child", "C", None, gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        looks = Impatient.looks
        await until(lambda: Impatient.looks > looks + 1, LONG)
        gate.open = True
        await handle.wait(LONG)

    assert mixed.journal == ["root-0", "child-0", "child-1", "root-1"]


async def test_tp_10_what_a_strategy_expects_is_asked_with_who_is_subscribed(mixed: Shop) -> None:
    asked: list[tuple[str, Collection[Participant]]] = []

    class Curious(Strategy):
        """Waits for those that are subscribed, and notes who they are."""

        def expect(self, topic: str, subscribed: Collection[Participant]) -> Collection[Participant]:
            asked.append((topic, subscribed))
            return subscribed

    root = mixed.app.saga("root", "R", strategy=Curious())
    mixed.step(root, "0", launches("C", "C", "N"))
    mixed.step(root, "1")
    mixed.saga("child", "C", None)

    await mixed.run("R")

    assert asked == [("C", (Participant("shop", "child"),)), ("N", ())]
    assert mixed.journal == ["root-0", "child-0", "child-0", "root-1"]


async def test_tp_10_a_strategy_that_fails_interrupts_the_run_and_nothing_else(
    mixed: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Strategy):
        """Fails."""

        broken = True

        def begin(self, outlook: Outlook) -> datetime | None:
            if self.broken:
                raise ZeroDivisionError("strategy")
            return None

    root = mixed.app.saga("root", "R", strategy=Broken())
    mixed.step(root, "0")
    mixed.saga("other", "O", None)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await (await mixed.app.launch("O", None)).wait(LONG)
        await until(lambda: any("ZeroDivisionError" in one for one in caplog.messages), LONG)
        Broken.broken = False
        await handle.wait(LONG)

    assert mixed.journal == ["other-0", "root-0"]


def test_what_is_no_strategy_is_refused(mixed: Shop) -> None:
    with pytest.raises(DefinitionError, match="derive its class from Strategy"):
        mixed.app.saga("root", "R", strategy=AcknowledgedWithin)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="positive"):
        AcknowledgedWithin(0)
    with pytest.raises(DefinitionError, match="'audit' on topic 'C' is no participant"):
        StaticTopology({"C": ["audit"]})  # type: ignore[list-item]
