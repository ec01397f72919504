"""What tests of stuck runs are written with: callbacks that are broken, and waiting for what becomes of a run."""

from typing import Any

import psycopg
import pytest

from scoop_outbox import (
    DistributedError,
    Handle,
    RunState,
    RunStatus,
    UnknownMessage,
)
from tests.scenarios.shop import LONG, Body, Shop
from tests.waiting import until

COMMITTED = RunState.COMMITTED
ROLLING_BACK = RunState.ROLLING_BACK
ROLLED_BACK = RunState.ROLLED_BACK
ROLLBACK_FAILED = RunState.ROLLBACK_FAILED


class Broken:
    """The body of a compensation that fails until it is mended."""

    def __init__(self, text: str = "rb boom") -> None:
        self.mended = False
        self.attempts: list[int] = []
        self._text = text

    def __call__(self, scope: Any, *_: Any) -> None:
        self.attempts.append(scope.attempt)
        if not self.mended:
            raise RuntimeError(self._text)


async def ends(shop: Shop, handle: Handle, saga: str, state: RunState) -> RunStatus:
    """Wait until the run of a saga is in a state."""

    async def is_there() -> bool:
        try:
            return any(run.state is state for run in await shop.runs(handle, saga))
        except UnknownMessage:  # its message has not been taken in yet
            return False

    await until(is_there, LONG)
    return await shop.only(handle, saga)


async def told(handle: Handle) -> DistributedError:
    with pytest.raises(DistributedError) as caught:
        await handle.wait(LONG)
    return caught.value


def loses_its_connection(database_url: str, mended: list[bool]) -> Body:
    """The body of a callback that costs its run the connection until it is mended."""

    def body(scope: Any, *_: Any) -> None:
        if not mended:
            with psycopg.connect(database_url, autocommit=True) as other:
                other.execute("select pg_terminate_backend(%s, 5000)", [scope.connection.info.backend_pid])

    return body
