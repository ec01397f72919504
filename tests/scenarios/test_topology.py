"""TP: who is waited for, and who else handles a message."""

from typing import Any

import pytest

from scoop_outbox import DefinitionError
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Gate, Shop, launches
from tests.waiting import until


async def test_tp_04_who_subscribes_while_a_parent_waits_may_handle_the_message_and_is_not_waited_for(
    make_shop: MakeShop,
) -> None:
    shop, other = make_shop(), make_shop(service="other")
    gate = Gate()
    shop.saga("root", "R", launches("C"), None)
    shop.saga("child", "C", gate)
    other.saga("second", "C", None)

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        async with other.running():
            gate.open = True
            await handle.wait(LONG)
            # The built-in broker has delivered the message before: it is nobody's who comes later.
            assert await shop.runs(handle, "second") == []

    assert shop.journal == ["root-0", "child-0", "root-1"]


async def _handled(shop: Shop, handle: Any) -> bool:
    return bool(await shop.ask("select from scoop_outbox.run where message_id = %s and state = 'committed'", handle.id))


async def test_tp_05_who_subscribes_after_a_message_was_taken_in_does_not_get_it(make_shop: MakeShop) -> None:
    shop, other = make_shop(), make_shop(service="other")
    shop.saga("root", "R", launches("C"), None)
    shop.saga("child", "C", None)
    other.saga("second", "C", None)

    handle = await shop.run("R")
    async with other.running():
        again = await other.app.launch("C", None)
        await until(lambda: shop.journal.count("second-0"), LONG)
        await until(lambda: _handled(other, again), LONG)

    assert shop.journal.count("second-0") == 1
    assert await shop.runs(handle, "second") == []


async def test_tp_06_a_run_that_waits_holds_up_no_other_run_of_its_saga(mixed: Shop) -> None:
    gate = Gate()

    def waits(_: Any, message: Any) -> Any:
        if message.payload == "slow":
            yield from gate()

    def passes_on(scope: Any, message: Any) -> None:
        scope.launch("C", message.payload)

    mixed.saga("root", "R", passes_on, None)
    mixed.saga("child", "C", waits)

    async with mixed.running():
        slow = await mixed.app.launch("R", "slow")
        await until(lambda: gate.entered, LONG)
        await (await mixed.app.launch("R", "quick")).wait(LONG)
        assert not (await mixed.app.status(slow.id)).ended
        gate.open = True
        await slow.wait(LONG)


async def test_tp_08_a_saga_has_one_topic_and_services_may_use_the_same_name(make_shop: MakeShop) -> None:
    shop, other = make_shop(), make_shop(service="other")
    shop.saga("same", "A", None)
    other.step(other.app.saga("same", "B"), "of-other")
    with pytest.raises(DefinitionError, match="has a saga 'same' already"):
        shop.app.saga("same", "B")

    async with shop.running(), other.running():
        await (await shop.app.launch("A", None)).wait(LONG)
        await (await shop.app.launch("B", None)).wait(LONG)

    assert shop.journal == ["same-0", "same-of-other"]


async def test_tp_09_a_restart_loses_nothing(make_shop: MakeShop) -> None:
    gate = Gate()

    def declared() -> Shop:
        shop = make_shop()
        shop.saga("root", "R", launches("C"), None)
        shop.saga("child", "C", gate, launches("D"))
        shop.saga("below", "D", None)
        return shop

    first = declared()
    async with first.running():
        in_flight = await first.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        gate.open = True
    meanwhile = await first.app.launch("R", None)
    second = declared()
    async with second.running():
        await second.app.handle(in_flight.id).wait(LONG)
        await second.app.handle(meanwhile.id).wait(LONG)

    assert [first.journal.count(f"root-{step}") for step in range(2)] == [2, 2]
    assert first.journal.count("below-0") == 2
