"""What a callback asks the database at a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scoop_outbox.core.statement import Call
from scoop_outbox.store.query import Query


def checkpoint(call: Call, queries: Mapping[str, Query]) -> tuple[bytes, list[Any]] | None:
    """Return the statement, for a raw cursor, and its parameters; None if the callback ends whatever is asked."""
    if call.checkpoint is None:
        return None
    query = queries["is_asked_to_give_up"]
    values = {"run": call.checkpoint.run, "deadline": call.checkpoint.deadline}
    return query.text, [values[name] for name in query.order]
