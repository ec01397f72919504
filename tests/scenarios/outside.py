"""Participants that are not sagas: what their scenarios are written with."""

from typing import Any

import pytest

from scoop_outbox import (
    DistributedError,
    Handle,
    RunState,
    RunStatus,
    UnknownMessage,
)
from scoop_outbox.app import service_of
from tests.scenarios.shop import LONG, Shop, launches
from tests.waiting import until

MANAGER = "manager-approval"


def approval(shop: Shop, *, fails: bool = False, **options: Any) -> None:
    """A root that launches a message for somebody outside, and goes on when that is done."""
    root = shop.app.saga("root", on="R")
    shop.step(root, "0", launches("approvals", payload={"amount": 900}, key="order 1"))

    def keeps(scope: Any, _: object) -> None:
        if fails:
            raise RuntimeError("boom")
        scope.set_result([result.value for result in scope.results])

    shop.step(root, "1", keeps)
    shop.app.external(MANAGER, on="approvals", **options)


async def waiting(shop: Shop, handle: Handle, name: str = MANAGER) -> RunStatus:
    """The run of somebody outside, once it has begun."""

    async def begun() -> bool:
        try:
            return bool(await shop.runs(handle, name))
        except UnknownMessage:
            return False

    await until(begun, LONG)
    return await shop.only(handle, name)


async def failed(handle: Handle) -> DistributedError:
    with pytest.raises(DistributedError) as caught:
        await handle.wait(LONG)
    return caught.value


async def is_in(shop: Shop, handle: Handle, name: str, state: RunState) -> bool:
    return (await shop.only(handle, name)).state is state


def database_of(shop: Shop) -> str:
    return service_of(shop.app).home.url
