"""CA-11, Q21, Q37, Q62: what is finished, although its hierarchy is cancelled."""

from typing import Any

import pytest

from scoop_outbox import Answer, RunState
from tests.scenarios.cancelling import FEELZ, cancelled_at, is_parked
from tests.scenarios.shop import LONG, Gate, Shop, launches, raises
from tests.waiting import until


async def test_ca_11_a_shielded_saga_runs_to_its_end_and_is_rolled_back_afterwards(mixed: Shop) -> None:
    gate = Gate()
    mixed.saga("root", "R", launches("C"), None)
    child = mixed.app.saga("child", "C", shield=True)
    mixed.step(child, "0", gate)
    mixed.step(child, "1", launches("G"))
    mixed.saga("grandchild", "G", None)

    handle, _ = await cancelled_at(gate, mixed)

    assert mixed.journal == [
        *("root-0", "child-0", "child-1", "grandchild-0"),
        *("grandchild-rb0", "child-rb1", "child-rb0", "root-rb0"),
    ]
    assert (await mixed.only(handle, "child")).state is RunState.ROLLED_BACK


async def test_q37_a_shielded_step_and_what_it_launched_are_finished_first(shop: Shop) -> None:
    gate = Gate()
    root = shop.app.saga("root", "R")
    shop.step(root, "0", launches("C"), shield=True)
    shop.step(root, "1")
    shop.saga("child", "C", gate, None)

    await cancelled_at(gate, shop)

    assert shop.journal == ["root-0", "child-0", "child-1", "child-rb1", "child-rb0", "root-rb0"]


async def test_q21_a_step_that_completes_on_give_up_is_compensated(shop: Shop) -> None:
    gate = Gate()
    root = shop.saga("root", "R", None)
    shop.step(root, "1", gate, complete_on_give_up=True)
    shop.step(root, "2")

    await cancelled_at(gate, shop)

    assert shop.journal == ["root-0", "root-1", "root-rb1", "root-rb0"]


async def test_q62_nothing_is_stopped_in_what_is_shielded(mixed: Shop) -> None:
    gate = Gate()

    def asks(scope: Any, _: Any) -> Any:
        yield from gate()
        yield scope.checkpoint()
        mixed.journal("root-goes on")

    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", asks, shield=True)

    await cancelled_at(gate, mixed)

    assert mixed.journal == ["root-0", "root-goes on", "root-rb0"]


async def test_a_shielded_run_that_is_parked_stays_parked(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R", shield=True)
    mixed.step(root, "0", raises(kind=MemoryError))

    async with mixed.running(max_interruptions=1):
        handle = await mixed.app.launch("R", None)
        await until(lambda: mixed.journal.count("root-0"), LONG)
        await until(lambda: is_parked(mixed, handle), LONG)
        assert await mixed.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        await until(lambda: _has_no_mail(mixed), LONG)  # the worker has looked

    assert mixed.journal == ["root-0"]


async def _has_no_mail(shop: Shop) -> bool:
    return not await shop.ask("select from scoop_outbox.mailbox")


@pytest.mark.parametrize("option", ["shield", "complete_on_give_up"])
async def test_q21_a_last_step_that_is_committed_is_compensated(mixed: Shop, option: str) -> None:
    gate = Gate()
    root = mixed.saga("root", "R", None)
    given: dict[str, Any] = {option: True}
    mixed.step(root, "1", gate, **given)

    await cancelled_at(gate, mixed)

    assert mixed.journal == ["root-0", "root-1", "root-rb1", "root-rb0"]
