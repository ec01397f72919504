"""How a driver talks to its server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scoop_outbox.core.statement import Statement
from scoop_outbox.store.pooler import Pooler
from scoop_outbox.store.query import Query
from scoop_outbox.wire.limits import Limits

_MACHINERY = (Statement("set_limits", {}), Statement("plan_once", {}))
_QUEUES = (*_MACHINERY, Statement("search_indexes", {}))


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


class Modes:
    """How the drivers of one home talk to its server.

    Args:
        compiled: the statements by name.
        pooler: what stands between, if anything does.

    Attributes:
        machinery: on connections on which no step ever runs.
        queues: on those of them that read queues in order.
    """

    def __init__(self, compiled: Mapping[str, Query], pooler: Pooler) -> None:
        """Tell the two of the machinery apart by their settings."""
        self._compiled = compiled
        self._pooler = pooler
        self.machinery = Mode(compiled, pooler, _MACHINERY)
        self.queues = Mode(compiled, pooler, _QUEUES)

    def steps(self, limits: Limits) -> Mode:
        """Return how they do so on connections that are as users expect theirs to be."""
        return Mode(self._compiled, self._pooler, limits=limits)
