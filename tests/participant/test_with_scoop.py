"""The participant in Node and a service in Python: each waits for the other, fails it, undoes it and cancels it."""

import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from scoop_outbox import Answer, DistributedError, GaveUp, Handle, RunState
from tests.carriers import Carrier
from tests.participant.counterpart import HOMES, REASON, SAID_SO, Counterpart, Json, run_id
from tests.participant.node import Courier
from tests.scenarios.cancelling import FEELZ
from tests.scenarios.shop import LONG, Gate, Journal, Shop, launches, raises
from tests.waiting import until

PARCEL = {"to": "Prague"}
PRICED = {"to": "Prague", "price": 7}


@asynccontextmanager
async def running(shop: Shop, courier: Courier) -> AsyncIterator[None]:
    """Run both, and begin when each knows who listens at the other."""
    async with shop.running():
        courier.start()
        await until(lambda: know_each_other(shop), LONG * 2)
        yield


async def know_each_other(shop: Shop) -> bool:
    return bool(
        await shop.ask(
            "select from scoop_outbox.peer p, scoop_outbox.home h "
            "where p.name = 'courier' and p.revision > 0 and p.confirmed = h.revision"
        )
    )


def parcels(courier: Courier) -> list[str]:
    return [str(state) for (state,) in courier.query("select state from parcel order by id")]


async def test_a_parent_waits_for_a_child_in_node_and_has_its_result(shop: Shop, courier: Courier) -> None:
    seen: list[Any] = []

    def look(scope: Any, _: Any) -> None:
        seen.extend((one.saga, one.value["invoice"]) for one in scope.results)
        assert parcels(courier) == ["booked"]

    shop.saga("root", "R", launches("parcels.book", payload=PARCEL), look)
    async with running(shop, courier):
        handle = await shop.app.launch("R", None)
        await handle.wait(LONG)
    assert seen == [("book", None)]
    assert await shop.states(handle) == {"root": RunState.COMMITTED}


async def test_a_message_from_outside_is_handled_in_node(shop: Shop, courier: Courier) -> None:
    shop.saga("root", "R", None)
    async with running(shop, courier):
        handle = await shop.app.launch("parcels.book", PARCEL)
        assert await handle.wait(LONG) == {"tracking": f"CZ-{str(handle.id)[-6:]}", "invoice": None}


async def test_a_failure_in_node_is_raised_in_python_with_its_lines(
    shop: Shop, courier: Courier, journal: Journal
) -> None:
    shop.saga("root", "R", None, launches("parcels.book", payload={"to": "Atlantis"}), None)
    async with running(shop, courier):
        handle = await shop.app.launch("R", None)
        with pytest.raises(DistributedError, match="no van goes to Atlantis") as caught:
            await handle.wait(LONG)
    assert journal == ["root-0", "root-1", "root-rb1", "root-rb0"]
    told = "".join(traceback.format_exception(caught.value))
    # The root cause first, with the line in Node; then the line in Python that has launched the message.
    assert told.index('File "<courier.js>", line ') < told.index("NoSuchPlace: no van") < told.index("scope.launch(")
    (cause,) = caught.value.failure.causes
    assert (cause.type, cause.stack_trace[-1].function_name) == ("NoSuchPlace", "reserve")
    assert cause.launched_at is not None
    assert cause.launched_at.function_name == "launches.<locals>.body"


async def test_what_node_has_done_is_undone_when_a_later_step_fails(
    shop: Shop, courier: Courier, journal: Journal
) -> None:
    shop.saga("root", "R", launches("parcels.book", payload=PARCEL), raises())
    async with running(shop, courier):
        handle = await shop.app.launch("R", None)
        with pytest.raises(DistributedError, match="boom"):
            await handle.wait(LONG)
        assert parcels(courier) == ["released"]
    assert journal == ["root-0", "root-1", "root-rb0"]


async def test_node_launches_a_child_in_python_and_has_its_result(
    shop: Shop, courier: Courier, journal: Journal
) -> None:
    shop.saga("root", "R", launches("parcels.book", payload=PRICED), None)
    shop.saga("invoice", "invoices.write", None, lambda scope, message: scope.set_result(message.payload["price"]))
    async with running(shop, courier):
        handle = await shop.app.launch("R", None)
        await handle.wait(LONG)
    assert journal == ["root-0", "invoice-0", "invoice-1", "root-1"]
    (result,) = courier.query("select json_extract(result, '$.invoice') from run")
    assert result == (7,)


async def test_a_child_of_node_that_fails_in_python_fails_all_above(
    shop: Shop, courier: Courier, journal: Journal
) -> None:
    shop.saga("root", "R", launches("parcels.book", payload=PRICED), None)
    shop.saga("invoice", "invoices.write", None, raises("no paper"))
    async with running(shop, courier):
        handle = await shop.app.launch("R", None)
        with pytest.raises(DistributedError, match="no paper") as caught:
            await handle.wait(LONG)
        assert parcels(courier) == ["released"]
    assert journal == ["root-0", "invoice-0", "invoice-1", "invoice-rb0", "root-rb0"]
    told = "".join(traceback.format_exception(caught.value))
    places = ["no paper", 'File "<courier.js>", line ', "in courier.bill", "scope.launch("]
    assert sorted(places, key=told.index) == places


async def test_a_later_failure_undoes_python_below_node_first(shop: Shop, courier: Courier, journal: Journal) -> None:
    shop.saga("root", "R", launches("parcels.book", payload=PRICED), raises())
    invoice = shop.app.saga("invoice", on="invoices.write")
    seen: list[list[str]] = []
    shop.step(invoice, "0", compensate=lambda *_: seen.append(parcels(courier)))
    async with running(shop, courier):
        handle = await shop.app.launch("R", None)
        with pytest.raises(DistributedError, match="boom"):
            await handle.wait(LONG)
        assert parcels(courier) == ["released"]
    assert seen == [["booked"]]
    assert journal == ["root-0", "invoice-0", "root-1", "invoice-rb0", "root-rb0"]


async def test_a_cancellation_goes_down_to_node_and_from_there_to_python(
    shop: Shop, courier: Courier, journal: Journal
) -> None:
    gate = Gate()
    shop.saga("root", "R", launches("parcels.book", payload=PRICED), None)
    shop.saga("invoice", "invoices.write", gate, None)
    async with running(shop, courier):
        handle = await shop.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await shop.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        # Its parent gives up when it has, and it when its child has.
        await until(lambda: courier.query("select 1 from child where ordered = 'cancel'"), LONG)
        assert parcels(courier) == ["reserved"]
        gate.open = True
        with pytest.raises(GaveUp):
            await handle.wait(LONG)
        assert parcels(courier) == ["released"]
    assert [entry for entry in journal.entries if "-rb" in entry][-1] == "root-rb0"
    assert "root-1" not in journal.entries


async def test_what_is_cancelled_before_node_has_it_starts_nothing(
    shop: Shop, courier: Courier, journal: Journal
) -> None:
    shop.saga("root", "R", launches("parcels.book", payload=PARCEL), None)
    async with running(shop, courier):
        courier.stop()
        handle = await shop.app.launch("R", None)
        await until(lambda: journal.count("root-0"), LONG)
        assert await shop.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        courier.start()
        with pytest.raises(GaveUp):
            await handle.wait(LONG)
    # Which of them came first, the message or the order, is the broker's affair.
    assert parcels(courier) in ([], ["released"])
    assert journal == ["root-0", "root-rb0"]


async def test_what_node_cannot_undo_stops_the_rollback_until_it_can(
    shop: Shop, courier: Courier, journal: Journal
) -> None:
    gate = Gate()

    def fails(*_: object) -> Any:
        yield from gate()
        raise RuntimeError("boom")

    shop.saga("root", "R", launches("parcels.book", payload=PARCEL), fails)
    async with running(shop, courier):
        handle = await shop.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        courier.query("update parcel set state = 'on its way'")
        gate.open = True
        with pytest.raises(DistributedError):
            await handle.wait(LONG)
        assert await shop.states(handle) == {"root": RunState.ROLLBACK_FAILED}
        assert journal == ["root-0", "root-1"]

        courier.query("update parcel set state = 'booked'")
        ((run,),) = courier.query("select id from run")
        courier.retry(run)

        async def undone() -> bool:
            return await shop.states(handle) == {"root": RunState.ROLLED_BACK}

        await until(undone, LONG)
    assert journal == ["root-0", "root-1", "root-rb0"]


async def test_a_crash_of_node_loses_nothing(shop: Shop, courier: Courier, journal: Journal) -> None:
    shop.saga("root", "R", launches("parcels.book", payload=PRICED), None)
    shop.saga("invoice", "invoices.write", None)
    async with running(shop, courier):
        handles = []
        for number in range(12):
            handles.append(await shop.app.launch("R", None))
            if number % 4 == 2:
                courier.kill()
                courier.start()
        for handle in handles:
            await handle.wait(LONG * 2)
    assert parcels(courier) == ["booked"] * 12
    assert journal.count("root-1") == journal.count("invoice-0") == 12


async def waited_for(shop: Shop, billing: Counterpart) -> tuple[Handle, Json]:
    """Launch a message on R, and return the child that its root has in the home that is written out."""
    mine: Json = {"topic": "invoices.write", "pattern": None, "names": [], "service": "billing", "saga": "invoice"}
    await billing.say("subscriptions", HOMES, revision=1, subscriptions=[mine], known={})
    await until(lambda: billing.kinds("confirmed"), LONG)
    handle = await shop.app.launch("R", None)
    await until(lambda: billing.messages, LONG)
    (message,) = billing.messages
    run = run_id(message.id, "billing", "invoice")
    return handle, {"message": message.id, "run": run, "service": "billing", "saga": "invoice"}


async def test_a_home_that_is_asked_before_a_message_has_come_may_say_so(
    shop: Shop, broker: str, carrier: Carrier, journal: Journal
) -> None:
    shop.saga("root", "R", launches("invoices.write"), None)
    there = "scoop.control.shop"
    async with Counterpart(broker, carrier._prefix) as billing, shop.running():
        handle, child = await waited_for(shop, billing)
        unknown = {"generation": 1, "state": "unknown", "failure": REASON}
        await billing.say("news", there, children=[{**child, **unknown}])
        await billing.say("news", there, children=[{**child, "generation": 1, "state": "started"}])
        await billing.say("news", there, children=[{**child, "generation": 2, "state": "committed"}])
        await handle.wait(LONG)
    assert journal == ["root-0", "root-1"]


async def test_what_a_home_tells_together_counts_as_if_it_had_been_told_one_after_the_other(
    shop: Shop, broker: str, carrier: Carrier, journal: Journal
) -> None:
    shop.saga("root", "R", launches("invoices.write"), raises())
    there = "scoop.control.shop"
    async with Counterpart(broker, carrier._prefix) as billing, shop.running():
        handle, child = await waited_for(shop, billing)
        await billing.say("news", there, children=[{**child, "generation": 2, "state": "committed"}])
        await billing.asked("roll_back")
        stuck = {"generation": 3, "state": "rollback_failed", "failure": SAID_SO, "obstacle": REASON}
        await billing.say("news", there, children=[{**child, **stuck}])
        with pytest.raises(DistributedError):
            await handle.wait(LONG)
        assert await shop.states(handle) == {"root": RunState.ROLLBACK_FAILED}

        further = {**child, "generation": 4, "state": "rolling_back"}
        undone = {**child, "generation": 5, "state": "rolled_back", "failure": SAID_SO}
        await billing.say("news", there, children=[further, undone])

        async def is_undone() -> bool:
            return await shop.states(handle) == {"root": RunState.ROLLED_BACK}

        await until(is_undone, LONG)
    assert journal == ["root-0", "root-1", "root-rb0"]
