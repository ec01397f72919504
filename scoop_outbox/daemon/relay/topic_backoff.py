"""Holds: what the broker does not take just now, by shard and topic, and when to try it again.

A topic that cannot be published on must not stop the others, and every topic has messages in every shard. So what is
held back is a topic within a shard: its messages keep their order, and those of other topics pass by. Whatever held it
may still be so when it is tried again; therefore that begins with a few messages.

While a topic is held back nobody reads it, and the floor of its shard passes by whatever of it commits meanwhile. So it
is read again from where the floor was when it was held back, not from the message that failed first: one with a lower
number may have come to light since, and was published behind those that follow it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from scoop_outbox.core.outbox import Flow

log = logging.getLogger(__name__)

LONGEST = 30.0
_LONGEST_FOR_ALL = 1.0
_SHORTEST = 0.05
_SHOWN = 5


@dataclass(slots=True)
class _Hold:
    seq: int  # where the first message that failed stands
    above: int  # nothing of the flow has been passed by up to here
    failures: int
    until: float
    is_tried: bool = False


class Holds:
    """The flows of one relay whose messages failed for now.

    Attributes:
        reason: why, as the broker said it last; empty when nothing is held.
    """

    def __init__(self) -> None:
        """Hold nothing."""
        self._flows: dict[Flow, _Hold] = {}
        self._stalls = 0  # batches in a row of which nothing went through
        self._stalled_since = 0.0
        self._go_on_at = 0.0
        self.reason = ""

    def __bool__(self) -> bool:
        """Tell whether anything is held back or being tried again."""
        return bool(self._flows)

    @property
    def closed(self) -> list[Flow]:
        """The flows of which nothing may be read."""
        return [flow for flow, hold in self._flows.items() if not hold.is_tried]

    @property
    def topics(self) -> list[str]:
        """The topics that are concerned."""
        return sorted({topic for _, topic in self._flows})

    def failed(
        self, firsts: Mapping[Flow, int], progress: Collection[Flow], reason: str, floors: Mapping[int, int]
    ) -> None:
        """Hold flows back, each time longer unless the message that failed first has gone through since.

        When nothing went through, it may be the broker, and not these topics: the others wait a little as well.

        Args:
            firsts: the flows, and where the first message of each that failed stands.
            progress: the flows of which others went through.
            reason: why.
            floors: of their shards, the numbers up to which all that there is has been read.
        """
        now, before = time.monotonic(), (self.reason, self.topics)
        self.reason = reason
        if progress:
            self._stalls = 0
        else:
            self._stalled_since = self._stalled_since if self._stalls else now
            self._stalls += 1
            self._go_on_at = now + min(_SHORTEST * 2.0 ** min(self._stalls, 60), _LONGEST_FOR_ALL)
        for flow, seq in firsts.items():
            known = self._flows.get(flow)
            # Not for others that went through: those of another key do each time, and the broker may take its time.
            failures = 1 if known is None or seq > known.seq else known.failures + 1
            pause = min(_SHORTEST * 2.0 ** min(failures, 60), LONGEST)
            self._flows[flow] = _Hold(seq, min(seq - 1, floors[flow[0]]), failures, now + pause)
        if (self.reason, self.topics) != before:
            topics = ", ".join(self.topics[:_SHOWN]) + (", ..." if len(self.topics) > _SHOWN else "")
            log.warning("messages on %s wait, the broker does not take them: %s", topics, reason)

    def let_go(self, flows: Collection[Flow]) -> None:
        """Hold flows back no more: their messages went through, or there are none."""
        if not flows or not self._flows:
            return
        self._stalls = 0
        for flow in flows:
            self._flows.pop(flow, None)
        if self._is_over():
            log.info("the broker takes messages again")

    def try_again(self) -> dict[int, int]:
        """Open the flows whose time has come; return their shards, and the numbers above which to read them again.

        A topic is tried in all shards at once: a broker may take its time to say no, and meanwhile all others wait.
        """
        now = time.monotonic()
        due = {topic for (_, topic), hold in self._flows.items() if not hold.is_tried and hold.until <= now}
        begin: dict[int, int] = {}
        for (shard, topic), hold in self._flows.items():
            if topic in due and not hold.is_tried:
                hold.is_tried = True
                begin[shard] = min(begin.get(shard, hold.above), hold.above)
        return begin

    def tried(self, shards: Collection[int]) -> set[Flow]:
        """Return the open flows of shards, of which nobody knows yet whether they go on."""
        return {flow for flow, hold in self._flows.items() if hold.is_tried and flow[0] in shards}

    def distrust(self) -> None:
        """Note that another server may answer from now on, where what was written later may have lower numbers."""
        for hold in self._flows.values():
            hold.above = 0

    def forget(self, shards: Collection[int]) -> None:
        """Forget shards that another relay owns now."""
        self._flows = {flow: hold for flow, hold in self._flows.items() if flow[0] not in shards}
        self._is_over()

    @property
    def pause(self) -> float:
        """For how many seconds nothing is to be published at all; 0 when there is no reason to wait."""
        return max(self._go_on_at - time.monotonic(), 0.0) if self._stalls else 0.0

    @property
    def stalled(self) -> float:
        """For how many seconds nothing has gone through that was tried."""
        return time.monotonic() - self._stalled_since if self._stalls else 0.0

    @property
    def next_due(self) -> float | None:
        """In how many seconds the next flow is to be tried; None when none waits for that."""
        due = min((hold.until for hold in self._flows.values() if not hold.is_tried), default=None)
        return None if due is None else max(due - time.monotonic(), self.pause)

    def _is_over(self) -> bool:
        if self._flows:
            return False
        self.reason = ""
        self._stalls = 0
        return True
