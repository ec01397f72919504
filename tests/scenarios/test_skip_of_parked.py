"""Q6, Q65: what is skipped of a run that was parked while it rolled back."""

from scoop_outbox import Answer, RunState
from tests.scenarios.healing import ends
from tests.scenarios.rollback_helpers import fails
from tests.scenarios.shop import LONG, Gate, Shop, launches
from tests.waiting import until


async def test_q6_q65_nothing_is_skipped_while_children_are_being_rolled_back(mixed: Shop) -> None:
    gate = Gate()
    mixed.saga("root", "R", launches("C"), fails)
    mixed.step(mixed.app.saga("child", "C"), "0", compensate=gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        run = await mixed.only(handle, "root")
        # As too many interruptions would: those come from the connection, when it is looked at, too.
        await mixed.ask(
            "update scoop_outbox.run set state = 'parked', reason = 'interrupted', ended_at = now() where id = %s "
            "returning id",
            run.id,
        )
        assert await mixed.app.skip(run.id) is Answer.REFUSED_ACTIVE
        assert (await mixed.only(handle, "root")).state is RunState.PARKED
        gate.open = True
        await ends(mixed, handle, "child", RunState.ROLLED_BACK)
        assert await mixed.app.skip(run.id) is Answer.ACCEPTED
        await ends(mixed, handle, "root", RunState.ROLLED_BACK)

    assert mixed.journal == ["root-0", "child-0", "root-1", "child-rb0"]
