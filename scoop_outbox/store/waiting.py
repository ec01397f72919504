"""Waiting on an event loop for the answers to a batch.

psycopg's own wait registers the socket with the loop and begins a timer, each time. In a worker whose slots are busy
that took a sixth of its Python time. Here there is no timer, and before the socket is registered the loop goes round
once: while others are at work the answer mostly comes meanwhile.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.waiting import Ready, Wait

from scoop_outbox.store.disconnect import async_abort

T = TypeVar("T")

_CANCEL_TIMEOUT = 5.0
"""Seconds that the server gets to end what is cancelled."""


async def answered(connection: psycopg.AsyncConnection[Any], batch: PQGen[T]) -> T:
    """Drive a generator to its end, as `connection.wait` does, and return what it returns.

    The generator is asked with `Ready.NONE` whether what it waits for has come.

    Raises:
        psycopg.OperationalError: the connection is closed or breaks.
        CancelledError: the task was cancelled. The server ends what it was doing, or has done all of it.
    """
    try:
        return await _driven(connection.pgconn.socket, batch)
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        await _call_off(connection, batch)
        raise


async def _call_off(connection: psycopg.AsyncConnection[Any], batch: PQGen[T]) -> None:
    """Have the server end what it is doing: else a launch that has timed out behind a lock is committed later."""
    pgconn = connection.pgconn
    if pgconn.transaction_status != TransactionStatus.ACTIVE:
        return
    try:
        with suppress(psycopg.Error, TimeoutError):
            async with asyncio.timeout(_CANCEL_TIMEOUT):
                await connection.cancel_safe(timeout=_CANCEL_TIMEOUT)
                await _driven(pgconn.socket, batch, begun=True)
    finally:
        # A frozen server, or somebody who cancels once more.
        if pgconn.transaction_status == TransactionStatus.ACTIVE:
            try:
                await async_abort(connection)
            finally:
                pgconn.finish()


async def _driven(descriptor: int, batch: PQGen[T], *, begun: bool = False) -> T:
    loop = asyncio.get_running_loop()
    try:
        # To begin a generator with a value is an error, and so is to go on with one of psycopg's without.
        wanted = batch.send(Ready.NONE) if begun else next(batch)
        if wanted == Wait.R:
            await asyncio.sleep(0)
            wanted = batch.send(Ready.NONE)
        while True:
            ready: asyncio.Future[Ready] = loop.create_future()
            if wanted & Wait.R:
                loop.add_reader(descriptor, _tell, ready, Ready.R)
            if wanted & Wait.W:
                loop.add_writer(descriptor, _tell, ready, Ready.W)
            try:
                state = await ready
            finally:
                if wanted & Wait.R:
                    loop.remove_reader(descriptor)
                if wanted & Wait.W:
                    loop.remove_writer(descriptor)
            wanted = batch.send(state)
    except StopIteration as done:
        result: T = done.value
        return result
    except OSError as error:
        raise psycopg.OperationalError("the connection is closed") from error


def _tell(ready: asyncio.Future[Ready], state: Ready) -> None:
    if not ready.done():
        ready.set_result(state)
