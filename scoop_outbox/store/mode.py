"""How a driver talks to its server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scoop_outbox.core.statement import Statement
from scoop_outbox.store.pooler import Pooler
from scoop_outbox.store.query import Query
from scoop_outbox.wire.limits import Limits


@dataclass(frozen=True, slots=True)
class Mode:
    """What a driver knows of its connections.

    Attributes:
        queries: the statements by name.
        pooler: what stands between, if anything does.
        settings: how connections behave on which no step ever runs. Others are as users expect theirs.
        limits: how large what a step launches may be.
    """

    queries: Mapping[str, Query]
    pooler: Pooler
    settings: tuple[Statement, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @property
    def pooled(self) -> bool:
        """Whether connections of the server's are lent for one transaction only."""
        return bool(self.pooler.present)

    def set_up(self) -> list[Statement]:
        """Return what makes a connection behave so: once, or at the beginning of each transaction behind a pooler."""
        return [setting._replace(params={"local": self.pooled}) for setting in self.settings]
