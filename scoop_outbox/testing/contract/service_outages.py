"""Services over a broker that is frozen or stopped under way: everything goes on afterwards, and nothing runs twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from scoop_outbox import Message, Scope
from scoop_outbox.testing.contract.harness import Power
from scoop_outbox.testing.contract.selection import Contract, needs
from scoop_outbox.testing.contract.services import noting
from scoop_outbox.testing.contract.system import System
from scoop_outbox.testing.contract.trial import until

_ENDS = 60.0


class Storms(Contract):
    """Tests of services over a broker that is away for a while."""

    @needs(Power.FREEZE)
    async def test_a_broker_is_frozen_while_a_hierarchy_runs(self, system: System) -> None:
        await _hierarchies(system, system.harness.freeze, system.harness.thaw)

    @needs(Power.STOP)
    async def test_a_broker_is_stopped_while_a_hierarchy_runs(self, system: System) -> None:
        await _hierarchies(system, system.harness.stop, system.harness.start)


async def _hierarchies(
    system: System, take_away: Callable[[], Awaitable[None]], give_back: Callable[[], Awaitable[None]]
) -> None:
    """Take the broker away when parents are about to launch their children, and give it back when none can come."""
    app, other = system.service("app"), system.service("other")
    parent, child = system.topic("parent"), system.topic("child")
    saga = app.saga("parent", on=parent)
    gone = asyncio.Event()

    async def begin(scope: Scope, message: Message) -> None:
        system.journal.append(f"begin {message.payload}")
        await gone.wait()
        for number in range(3):
            scope.launch(child, [message.payload, number], key=str(message.payload))

    async def end(scope: Scope, message: Message) -> None:
        system.journal.append(f"end {message.payload}")

    saga.add_step("begin", begin)
    saga.add_step("end", end)
    noting(app, "here", child, system.journal.append)
    noting(other, "there", child, system.journal.append)

    async with system.running(app, other):
        handles = [await app.launch(parent, number) for number in range(3)]
        await until(lambda: len(system.journal) == len(handles), "all parents have begun")
        await take_away()
        try:
            gone.set()
            # Long enough for relay and intake to have met the broker's absence.
            await asyncio.sleep(2)
            assert len(system.journal) == len(handles), "nothing can have come"
        finally:
            await give_back()
        for handle in handles:
            await handle.wait(_ENDS)

    children = [f"{saga} [{parent}, {n}]" for saga in ("here", "there") for parent in range(3) for n in range(3)]
    parents = [f"{what} {n}" for what in ("begin", "end") for n in range(3)]
    assert system.counts() == dict.fromkeys([*children, *parents], 1)
    for number in range(3):
        ends = system.journal.index(f"end {number}")
        assert all(system.journal.index(one) < ends for one in children if f"[{number}," in one)
