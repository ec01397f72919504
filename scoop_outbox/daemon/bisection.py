"""Bisection: one message that cannot be stored must not keep out the others of its batch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import psycopg

from scoop_outbox.store.faults import is_refusal

T = TypeVar("T")


async def bisect(
    batch: Sequence[T],
    store: Callable[[Sequence[T]], Awaitable[None]],
    refused: Callable[[T, psycopg.Error], Awaitable[None]],
) -> None:
    """Store a batch; one that the database refuses is halved until what it refuses is alone.

    Args:
        batch: what is to be stored. Its order is kept.
        store: stores a part of it in one transaction, all or nothing.
        refused: told of what is alone and cannot be stored, and of the database's last word.

    Raises:
        psycopg.Error: one that is no refusal ends the bisection. What was stored before it remains so.
    """
    try:
        await store(batch)
    except psycopg.Error as error:
        if not is_refusal(error):
            raise
        if len(batch) == 1:
            await refused(batch[0], error)
            return
    else:
        return
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        await bisect(half, store, refused)
