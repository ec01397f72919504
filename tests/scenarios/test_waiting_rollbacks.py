"""UR, Q8: requests to roll back that cannot be carried out at once: nobody waits for them, and they hold nobody up."""

import asyncio

import psycopg
import pytest

from scoop_outbox import Answer, RunState
from scoop_outbox.daemon.worker import roster
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, launches
from tests.scenarios.healing import ends


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
