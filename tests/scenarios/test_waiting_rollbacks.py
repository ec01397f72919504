"""UR, Q8: requests to roll back that cannot be carried out at once: nobody waits for them, and they hold nobody up."""

import asyncio

import psycopg
import pytest

from scoop_outbox import Answer, RunState
from scoop_outbox.daemon.worker import roster
from tests.carriers import BUILTIN, Carrier
from tests.scenarios.conftest import MakeShop
from tests.scenarios.healing import ends
from tests.scenarios.shop import LONG, Shop, launches, with_a_message_on_its_way
from tests.waiting import until


@pytest.mark.one_home("it is about locks in one database: nobody waits for one of another home")
@pytest.mark.parametrize("held", ["root", "child"])
async def test_ur_01_a_request_does_not_wait_for_a_lock_but_is_left_for_later(
    make_shop: MakeShop, database_url: str, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    monkeypatch.setattr(roster, "EVERY", 0.1)
    shop = make_shop()
    shop.saga("root", "R", launches("C"))
    shop.saga("child", "C", None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await handle.wait(LONG)
        child, row = await shop.only(handle, "child"), await shop.only(handle, held)
        async with await psycopg.AsyncConnection.connect(database_url) as holder:
            await holder.execute("select from scoop_outbox.run where id = %s for update", [row.id])
            async with asyncio.timeout(LONG / 2):  # less than a lock is waited for
                answered = await shop.app.rollback(child.id, reason="feelz")
                again = await asyncio.to_thread(shop.app.rollback_sync, child.id)
            assert (answered.answer, again.answer) == (Answer.ACCEPTED, Answer.ALREADY_REQUESTED)
            assert (await shop.only(handle, "child")).state is RunState.COMMITTED
        await ends(shop, handle, "child", RunState.ROLLED_BACK)

    assert shop.journal == ["root-0", "child-0", "child-rb0"]


@pytest.mark.parametrize("carrier", [BUILTIN], indirect=True)
async def test_ur_05_a_request_for_what_is_to_come_is_carried_out_once(
    make_shop: MakeShop, carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "EVERY", 0.05)
    shop = make_shop()
    shop.saga("root", "R", launches("C"), None)
    shop.saga("child", "C", None)

    async with with_a_message_on_its_way(shop, carrier) as handle:
        ((message_id,),) = await shop.ask("select message_id from scoop_outbox.child")
        # Its parent waits for it: so the request waits, too.
        assert (await shop.app.rollback(message_id, if_active="wait")).answer is Answer.ACCEPTED
        await _looks(shop)
        assert await shop.ask("select from scoop_outbox.request where kind = 'cancel'") == []
        assert await shop.app.cancel(handle.id) is Answer.ACCEPTED
        await ends(shop, handle, "root", RunState.ROLLED_BACK)

    other = await shop.app.launch("R", None)
    async with shop.running(relay=False):
        assert (await shop.app.rollback(other.id)).answer is Answer.ACCEPTED
        before = await shop.ask("select last_value from scoop_outbox.request_id_seq")
        await _looks(shop)
        assert await shop.ask("select last_value from scoop_outbox.request_id_seq") == before
    async with shop.running():
        await ends(shop, other, "root", RunState.ROLLED_BACK)
    assert shop.journal == ["root-0", "root-rb0"]


async def _looks(shop: Shop) -> None:
    """Wait until a worker has looked around it several times."""
    alive = "select max(alive_until) from scoop_outbox.worker"
    for _ in range(4):
        before = await shop.ask(alive)
        await until(lambda before=before: _differs(shop, alive, before), LONG)  # type: ignore[misc]


async def _differs(shop: Shop, statement: str, before: object) -> bool:
    return await shop.ask(statement) != before
