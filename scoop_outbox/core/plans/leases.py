"""Plans of leases: which shards of the outbox a relay owns, and since which epoch."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import timedelta

from scoop_outbox.core.statement import Plan, ask, statement


def renew_shards(epochs: Mapping[int, int], lease: timedelta) -> Plan[dict[int, int]]:
    """Renew the leases of shards; return those that are still owned, and since which epoch."""
    (rows,) = yield from ask(statement("renew_shards", lease=lease, **_owned(epochs)))
    return dict(rows)


def acquire_shards(owner: uuid.UUID, lease: timedelta) -> Plan[dict[int, int]]:
    """Take the shards that nobody owns; return them with their new epochs."""
    (rows,) = yield from ask(statement("acquire_shards", owner=owner, lease=lease))
    return dict(rows)


def release_shards(epochs: Mapping[int, int]) -> Plan[None]:
    """Let a standby take shards over at once."""
    yield from ask(statement("release_shards", **_owned(epochs)))


def _owned(epochs: Mapping[int, int]) -> dict[str, list[int]]:
    return {"shards": list(epochs), "epochs": list(epochs.values())}
