"""Q6, Q78: random trees that got stuck and are healed are undone in the order of those that never did."""

import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoop_outbox import (
    Scoop,
)
from tests.scenarios.healing import ROLLED_BACK, told
from tests.scenarios.rollback_helpers import (
    fails,
)
from tests.scenarios.shop import LONG, Body, Journal, Shop, launches
from tests.waiting import until


@dataclass
class Part:
    """A saga of a random tree: how many steps it has, and what each of them launches."""

    below: list["Part | None"]


parts = st.recursive(
    st.builds(Part, st.lists(st.none(), min_size=1, max_size=2)),
    lambda part: st.builds(Part, st.lists(st.none() | part, min_size=1, max_size=3)),
    max_leaves=6,
)


def declare(shop: Shop, part: Part, name: str, undo: Callable[[str], Body]) -> None:
    saga = shop.app.saga(name, name)
    for number, below in enumerate(part.below):
        topic = f"{name}/{number}"
        body = None if below is None else launches(topic)
        shop.step(saga, str(number), body, compensate=undo(topic))
        if below is not None:
            declare(shop, below, topic, undo)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=parts, data=st.data())
async def test_q6_q78_what_is_healed_is_undone_in_the_order_of_what_never_got_stuck(
    database_url: str, part: Part, data: st.DataObject
) -> None:
    undone: list[str] = []
    names: list[str] = []
    failing: dict[str, int] = {}

    def undo(name: str) -> Body:
        names.append(name)

        def body(*_: Any) -> None:
            if failing.get(name, 0):
                failing[name] -= 1
                raise RuntimeError(name)
            undone.append(name)

        return body

    top = f"{uuid.uuid4()}"
    shop = Shop(Scoop(top, database=database_url), Journal(), "mixed")
    declare(shop, part, top, undo)
    shop.step(shop.app.sagas[top], "last", fails)
    broken = data.draw(st.lists(st.sampled_from(sorted(names)), min_size=1, max_size=3))
    async with shop.running():
        await told(await shop.app.launch(top, None))
        expected = list(undone)
        assert sorted(expected) == sorted(names)
        undone.clear()
        failing.update(Counter(broken))
        handle = await shop.app.launch(top, None)
        failure = (await told(handle)).failure
        root = await shop.only(handle, top)

        async def is_healed() -> bool:
            await shop.app.retry(root.id)
            return (await shop.only(handle, top)).state is ROLLED_BACK

        await until(is_healed, LONG, 0.01)
        assert (await told(handle)).failure != failure
    await shop.app.close()
    assert not any(failing.values())
    assert undone == expected
