"""What a callback leaves on the server's side of its connection, and how it is removed (behaviour Q70).

In the round trip that commits, and only after callbacks that were lent the connection. What a rollback takes back
needs nothing. The rest comes behind the commit, outside any transaction: a RESET inside one would be undone together
with it, and settings that a transaction of the user's relies on until its end (synchronous_commit, what a deferred
trigger reads) are left alone that long.
"""

from __future__ import annotations

from collections.abc import Sequence

from scoop_outbox.core.statement import (
    BEGIN,
    COMMIT,
    COMMIT_AND_BEGIN,
    RELEASE_SAVEPOINT,
    ROLLBACK,
    ROLLBACK_TO_SAVEPOINT,
    SYNC,
    Batch,
    Rows,
    Statement,
)

_OURSELVES = {
    False: [Statement("reset_role", {})],
    True: [Statement("reset_session_authorization", {}), Statement("reset_role", {})],
}
"""Ahead of our own writes: the role that a callback has taken on may not be allowed to make them."""

_RELEASE = Statement("release_session", {})
_RELEASE_LOCKS = Statement("release_locks", {})
_AFTER_ROLLBACK = [Statement("discard_sequences", {}), _RELEASE]
# What lies about on a connection that a pooler lends to many is not this callback's.
_AFTER_ROLLBACK_POOLED = [Statement("discard_sequences", {}), _RELEASE_LOCKS]


def after_rollback(*, pooled: bool) -> list[Statement]:
    """Return what removes what even a rollback leaves. The last statement answers whether something is left for good.

    Args:
        pooled: whether a pooler lends connections of the server's for one transaction.
    """
    return _AFTER_ROLLBACK_POOLED if pooled else _AFTER_ROLLBACK


def _in_place(*, asks: bool, another: bool) -> dict[str, list[Statement]]:
    left = after_rollback(pooled=not asks)
    behind = [Statement("reset_settings", {}), Statement("discard_temporary", {}), *left]
    return {
        RELEASE_SAVEPOINT.name: [RELEASE_SAVEPOINT, *_OURSELVES[another]],
        COMMIT.name: [COMMIT, *behind],
        COMMIT_AND_BEGIN.name: [COMMIT, *behind, SYNC, BEGIN],
        ROLLBACK.name: [ROLLBACK, *left],
    }


_IN_PLACE_OF = {
    (asks, another): _in_place(asks=asks, another=another) for asks in (False, True) for another in (False, True)
}

_ENDS = {COMMIT.name, COMMIT_AND_BEGIN.name, ROLLBACK.name}


def cleaned(batch: Batch, *, asks: bool, another: bool) -> tuple[list[Statement], list[int]]:
    """Return a batch that settles what a callback did and cleans its connection, and where its own answers are.

    Args:
        batch: the batch.
        asks: whether to ask if something is left for good.
        another: whether the session may be that of another user.

    One that does not end the transaction cleans nothing: only the role of the callback is not that of its statements.
    """
    if not (ends(batch) or batch[0].name == ROLLBACK_TO_SAVEPOINT.name):
        ours = _OURSELVES[another]
        return [*ours, *batch], list(range(len(ours), len(ours) + len(batch)))
    in_place = _IN_PLACE_OF[asks, another]
    extended: list[Statement] = []
    own: list[int] = []
    for asked in batch:
        own.append(len(extended))
        extended += in_place.get(asked.name, (asked,))
    return extended, own


def ends(batch: Batch) -> bool:
    """Tell whether a batch ends the transaction that a callback has worked in."""
    return any(asked.name in _ENDS for asked in batch)


def commits(batch: Batch) -> bool | None:
    """Tell what a batch makes of a callback's work: True if it commits it, False if it undoes it, None if neither."""
    for asked in batch:
        if asked.name in (COMMIT.name, COMMIT_AND_BEGIN.name):
            return True
        if asked.name in (ROLLBACK.name, ROLLBACK_TO_SAVEPOINT.name):
            return False
    return None


def is_clean(batch: Batch, answers: Sequence[Rows]) -> bool:
    """Tell whether nothing is left that only the end of the connection removes."""
    return all(answer[0][0] for asked, answer in zip(batch, answers, strict=True) if asked is _RELEASE)
