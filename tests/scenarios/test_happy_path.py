"""The happy path: steps in order, and no step before everything below the one before it has finished."""

from scoop_outbox import RunState
from tests.scenarios.shop import Shop, events, launches


async def test_hp_01_the_next_step_waits_for_the_children(shop: Shop) -> None:
    shop.saga("root", "R", launches("C"), None)
    shop.saga("child", "C", None, None)

    handle = await shop.run("R")

    assert shop.journal == ["root-0", "child-0", "child-1", "root-1"]
    assert await shop.states(handle) == {"root": RunState.COMMITTED, "child": RunState.COMMITTED}
    assert await events(shop.app, handle) == [
        "root 0 step committed",
        "child 0 step committed",
        "child 1 step committed",
        "root 1 step committed",
    ]
