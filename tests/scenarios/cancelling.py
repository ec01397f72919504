"""What tests of cancellation are written with: a request that is recognised in failures, and what a run is doing."""

from typing import Any

from scoop_outbox import CancellationRequested, GaveUp, Handle, RunState
from tests.scenarios.shop import Shop

FEELZ = {"reason": "feelz", "source": "master-system"}


def gave_up(failure: Any, saga: str) -> bool:
    """Whether a failure is that of a run of `saga` which gave up for the reason above, and for nothing else."""
    (cause,) = failure.causes
    return (failure.type, failure.message, failure.source.split("[")[0]) == (GaveUp.__name__, None, saga) and (
        (cause.type, cause.message, cause.source) == (CancellationRequested.__name__, "feelz", "master-system")
    )


async def gives_up(shop: Shop, handle: Handle) -> bool:
    root, *_ = await shop.runs(handle, "root")
    return root.giving_up is not None


async def is_parked(shop: Shop, handle: Handle) -> bool:
    return any(run.state is RunState.PARKED for run in await shop.runs(handle))
