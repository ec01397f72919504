"""Q6, Q78: what a hierarchy raises, and what is said of it, once what had got stuck in it has been healed."""

import logging
from typing import Any

import pytest

from scoop_outbox import Answer, RunState
from tests.scenarios.healing import Broken, ends, told
from tests.scenarios.rollback_helpers import child_rolled_back, shape, simulated
from tests.scenarios.shop import LONG, Shop, launches, raises
from tests.waiting import until

ROLLED_BACK = RunState.ROLLED_BACK
ROLLBACK_FAILED = RunState.ROLLBACK_FAILED


def breaks(shop: Shop, name: str, topic: str, body: Any = None) -> Broken:
    """Declare a saga whose first step cannot be undone until it is mended, and which fails by itself with a body."""
    broken = Broken(f"rb {name}")
    saga = shop.app.saga(name, topic)
    shop.step(saga, "0", compensate=broken)
    if body is not None:
        shop.step(saga, "1", body)
    return broken


async def test_q6_a_healed_parent_does_not_name_whom_it_had_told_to_roll_back(mixed: Shop) -> None:
    mixed.saga("root", "R", launches("A", "B"))
    broken = breaks(mixed, "fails", "A", raises("why"))
    mixed.saga("told", "B", None)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        broken.mended = True
        assert await mixed.app.retry((await mixed.only(handle, "fails")).id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)
        error = await told(handle)

    assert shape(error.failure) == child_rolled_back("root", "0", simulated("fails", "why"))


async def test_q6_a_parent_raises_the_same_however_many_of_its_children_were_healed(mixed: Shop) -> None:
    mixed.saga("root", "R", launches("A", "B", "C"))
    one = breaks(mixed, "one", "A", raises("why one"))
    # The second one fails once the first cannot be undone any more: in this order they are told of.
    two = breaks(mixed, "two", "B", _fails_after(mixed, "one-rb0", "why two"))
    three = breaks(mixed, "three", "C")

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        expected = dict.fromkeys(("root", "one", "two", "three"), ROLLBACK_FAILED)
        assert await mixed.states(handle) == expected
        for name, broken in {"three": three, "two": two, "one": one}.items():
            broken.mended = True
            assert await mixed.app.retry((await mixed.only(handle, name)).id) is Answer.ACCEPTED
            await ends(mixed, handle, name, ROLLED_BACK)
        await ends(mixed, handle, "root", ROLLED_BACK)
        error = await told(handle)

    whys = simulated("one", "why one"), simulated("two", "why two")
    assert shape(error.failure) == child_rolled_back("root", "0", *whys)


async def test_q6_a_child_that_is_healed_before_its_parent_has_stopped_is_told_of_likewise(mixed: Shop) -> None:
    gate = {"open": False}

    def slow(*_: Any) -> Any:
        yield lambda: gate["open"]

    mixed.saga("root", "R", launches("A", "B"))
    broken = breaks(mixed, "fails", "A", raises("why"))
    mixed.step(mixed.app.saga("slow", "B"), "0", compensate=slow)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: mixed.journal.count("slow-rb0"), LONG)
        broken.mended = True
        assert await mixed.app.retry((await mixed.only(handle, "fails")).id) is Answer.ACCEPTED
        await ends(mixed, handle, "fails", ROLLED_BACK)
        gate["open"] = True
        await ends(mixed, handle, "root", ROLLED_BACK)
        error = await told(handle)

    assert shape(error.failure) == child_rolled_back("root", "0", simulated("fails", "why"))


async def test_q6_children_that_were_healed_are_told_of_in_the_order_in_which_they_had_failed(mixed: Shop) -> None:
    mixed.saga("root", "R", launches("A", "B"))
    saga = mixed.app.saga("first", "A")
    broken = Broken("rb first")

    def undo(scope: Any, message: Any, error: Any) -> Any:
        yield lambda: mixed.journal.count("second-rb0")
        broken(scope, message, error)

    mixed.step(saga, "0", compensate=undo)
    mixed.step(saga, "1", raises("why first"))
    mixed.saga("second", "B", None, _fails_after(mixed, "first-rb0", "why second"))

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        broken.mended = True
        assert await mixed.app.retry((await mixed.only(handle, "first")).id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)
        error = await told(handle)

    whys = simulated("first", "why first"), simulated("second", "why second")
    assert shape(error.failure) == child_rolled_back("root", "0", *whys)


def _fails_after(shop: Shop, entry: str, text: str) -> Any:
    """The body of a step that fails once the journal has an entry."""

    def body(*_: Any) -> Any:
        yield lambda: shop.journal.count(entry)
        raise RuntimeError(text)

    return body


async def test_q6_operators_hear_of_each_run_that_goes_on_by_itself(
    mixed: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "scoop_outbox")
    mixed.saga("root", "R", launches("M"), raises("why"))
    mixed.saga("middle", "M", launches("C"))
    broken = breaks(mixed, "broken", "C")

    async with mixed.running():
        handle = await mixed.app.launch("R", "payload", key="its key")
        await told(handle)
        broken.mended = True
        assert await mixed.app.retry((await mixed.only(handle, "broken")).id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)

    lines = [record for record in caplog.records if record.message.startswith("run: rolling back again (")]
    assert [vars(line)["saga"] for line in lines] == ["middle", "root"]
    root = await mixed.only(handle, "root")
    assert (vars(lines[1])["run_id"], vars(lines[1])["message_id"]) == (root.id, handle.id)
    assert (vars(lines[1])["service"], vars(lines[1])["key"]) == ("shop", "its key")


async def test_q6_a_failure_that_a_handler_put_in_its_place_stays(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches("A"), on_child_failure=raises("replaced", ValueError))
    broken = breaks(mixed, "fails", "A", raises("why"))

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await told(handle)
        broken.mended = True
        assert await mixed.app.retry((await mixed.only(handle, "fails")).id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", ROLLED_BACK)
        error = await told(handle)

    assert (error.type, error.message) == ("ValueError", "replaced")
