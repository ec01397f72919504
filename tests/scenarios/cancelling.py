"""What tests of cancellation are written with: a request that is recognised in failures, and what a run is doing."""

from typing import Any

import pytest

from scoop_outbox import Answer, CancellationRequested, GaveUp, Handle, RunState
from tests.scenarios.shop import LONG, Gate, Shop
from tests.waiting import until

FEELZ = {"reason": "feelz", "source": "master-system"}


def gave_up(failure: Any, saga: str) -> bool:
    """Whether a failure is that of a run of `saga` which gave up for the reason above, and for nothing else."""
    (cause,) = failure.causes
    return (failure.type, failure.message, failure.source.split("[")[0]) == (GaveUp.__name__, None, saga) and (
        (cause.type, cause.message, cause.source) == (CancellationRequested.__name__, "feelz", "master-system")
    )


async def cancelled_at(gate: Gate, shop: Shop, *, told: bool = False, **options: Any) -> tuple[Handle, GaveUp]:
    """Launch a message on R, cancel its hierarchy when it is held back at the gate, and return how it ended.

    Args:
        gate: the body of the step that is executed meanwhile.
        shop: the service; it runs just for this.
        told: the gate is opened when the root has been told to give up, and not as soon as that was asked for.
        options: of `Shop.running`.
    """
    async with shop.running(**options):
        handle = await shop.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await shop.app.cancel(handle.id, **FEELZ) is Answer.ACCEPTED
        if told:
            await until(lambda: gives_up(shop, handle), LONG)
        gate.open = True
        with pytest.raises(GaveUp) as caught:
            await handle.wait(LONG)
    return handle, caught.value


async def gives_up(shop: Shop, handle: Handle) -> bool:
    root, *_ = await shop.runs(handle, "root")
    return root.giving_up is not None


async def is_parked(shop: Shop, handle: Handle) -> bool:
    return any(run.state is RunState.PARKED for run in await shop.runs(handle))
