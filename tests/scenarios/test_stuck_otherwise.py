"""Q6, Q10: what is stuck in ways that come from elsewhere: forgotten, abandoned while parked, busy, locked."""

import asyncio
from typing import Any

import psycopg
import pytest

from scoop_outbox import Answer, Retry, RunState
from scoop_outbox.app import service_of
from scoop_outbox.core.plans.intake import take_in
from scoop_outbox.daemon.worker import roster
from scoop_outbox.message import Envelope
from scoop_outbox.operations.handlers import Handlers
from tests.carriers import BUILTIN, Carrier
from tests.scenarios.conftest import MakeShop
from tests.scenarios.healing import Broken, ends, loses_its_connection, told
from tests.scenarios.rollback_helpers import fails
from tests.scenarios.shop import LONG, Gate, Shop, launches, raises, with_a_message_on_its_way
from tests.waiting import until


async def test_q6_a_run_that_was_forgotten_on_its_way_forward_is_compensated(
    make_shop: MakeShop, database_url: str
) -> None:
    before, after = make_shop(), make_shop()
    for shop in (before, after):
        root = shop.saga("root", "R", None)
        shop.step(root, "1", raises("no"), retry=Retry(attempts=5, backoff=600.0, max_backoff=600.0))
    async with before.running():
        handle = await before.app.launch("R", None)
        await until(lambda: before.journal.count("root-1"), LONG)
        await until(lambda: before.ask("select from scoop_outbox.run where not_before is not null"), LONG)
    with Handlers(database_url) as handlers:
        await asyncio.to_thread(handlers.forget, "shop", "root", abandon=True, force=True)
    run = await ends(before, handle, "root", RunState.ROLLBACK_FAILED)

    async with after.running():
        assert await after.app.retry(run.id) is Answer.ACCEPTED
        await ends(after, handle, "root", RunState.ROLLED_BACK)

    assert after.journal == ["root-0", "root-1", "root-rb0"]


async def test_q10_a_part_that_is_abandoned_while_it_is_parked_counts_as_done(
    make_shop: MakeShop, database_url: str
) -> None:
    shop = make_shop("blocking")
    shop.saga("root", "R", launches("C"))
    shop.step(shop.app.saga("child", "C"), "0", compensate=loses_its_connection(database_url, []))

    async with shop.running(max_interruptions=2):
        handle = await shop.app.launch("R", None)
        await handle.wait(LONG)
        child = await shop.only(handle, "child")
        assert (await shop.app.rollback(child.id)).answer is Answer.ACCEPTED
        await ends(shop, handle, "child", RunState.PARKED)
        assert await shop.app.abandon(child.id) is Answer.ACCEPTED
        assert (await shop.app.rollback(handle.id)).answer is Answer.ACCEPTED
        await ends(shop, handle, "root", RunState.ROLLED_BACK)


async def test_q6_a_retry_of_several_says_so_when_one_of_them_was_busy(mixed: Shop, database_url: str) -> None:
    one, two = Broken("one"), Broken("two")
    mixed.saga("root", "R", launches("C", "D"), fails)
    mixed.step(mixed.app.saga("one", "C"), "0", compensate=one)
    mixed.step(mixed.app.saga("two", "D"), "0", compensate=two)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        one.mended = two.mended = True
        root, leaf = await mixed.only(handle, "root"), await mixed.only(handle, "two")
        async with await psycopg.AsyncConnection.connect(database_url) as other:
            await other.execute("select from scoop_outbox.run where id = %s for update", [leaf.id])
            assert await mixed.app.retry(root.id) is Answer.BUSY
            await other.rollback()
        assert (await mixed.app.retry(root.id)).fulfils
        await ends(mixed, handle, "root", RunState.ROLLED_BACK)


async def test_a_request_that_waits_for_a_lock_holds_nobody_up(
    make_shop: MakeShop, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "EVERY", 0.1)
    shop, other = make_shop(), make_shop(service="other")
    shop.saga("root", "R", None)
    other.saga("ping", "P", None)
    handle = await shop.run("R")

    async with other.running():
        async with await psycopg.AsyncConnection.connect(database_url) as holder:
            await holder.execute("select from scoop_outbox.run where message_id = %s for update", [handle.id])
            async with await psycopg.AsyncConnection.connect(database_url) as asking:
                assert (await shop.app.rollback(handle.id, session=asking)).answer is Answer.ACCEPTED
            for _ in range(5):
                await (await other.app.launch("P", None)).wait(LONG)
            assert (await shop.only(handle, "root")).state is RunState.COMMITTED
        await ends(shop, handle, "root", RunState.ROLLING_BACK)


@pytest.mark.parametrize("carrier", [BUILTIN], indirect=True)
async def test_q22_a_child_that_never_starts_fails_fast_too(make_shop: MakeShop, carrier: Carrier) -> None:
    shop, gate = make_shop(), Gate()

    def both(scope: Any, _: Any) -> None:
        scope.launch("B", None)
        scope.launch("A", None, timeout=1.0)

    root = shop.app.saga("root", "R")
    shop.step(root, "0", both, fail_fast=True)
    shop.saga("b", "B", gate, None)
    shop.saga("a", "A", None)

    async with with_a_message_on_its_way(shop, carrier) as handle:
        outbox = "select message_id::text, key, body, content_type, headers from scoop_outbox.outbox where topic = 'B'"
        ((message_id, key, body, content_type, headers),) = await shop.ask(outbox)
        message = Envelope(message_id, "B", key, bytes(body), content_type, headers)
        async with service_of(shop.app).home.driver() as driver:
            await driver.run(take_in([message], service_of(shop.app).hints))
        await until(lambda: gate.entered, LONG)
        told_to = "select from scoop_outbox.child where saga = 'b' and state = 'cancelling'"
        await until(lambda: shop.ask(told_to), LONG)
        gate.open = True
        await told(handle)

    assert shop.journal == ["root-0", "b-0", "root-rb0"]
