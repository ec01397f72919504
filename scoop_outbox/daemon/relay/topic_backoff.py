"""Topic backoff: what the broker does not take just now, by shard and topic, and when to try it again.

A topic that cannot be published on must not stop the others, and every topic has messages in every shard. So what is
blocked is a topic within a shard: its messages keep their order, and those of other topics pass by. Whatever blocked it
may still be so when it is tried again; therefore that begins with a few messages: it is half open.

While a topic is blocked nobody reads it, and the low watermark of its shard passes by whatever of it commits meanwhile.
So it is read again from where the watermark was when it was blocked, not from the message that failed first: one with a
lower number may have come to light since, and was published behind those that follow it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans.outbox import Flow
from scoop_outbox.policy import exponential

log = get_logger(__name__)

LONGEST = 30.0
_LONGEST_FOR_ALL = 1.0
_SHORTEST = 0.1
_SHOWN = 5


@dataclass(slots=True)
class _Blocked:
    seq: int  # where the first message that failed stands
    above: int  # nothing of the flow has been passed by up to here
    failures: int
    until: float
    half_open: bool = False


class TopicBackoff:
    """The flows of one relay whose messages failed for now.

    Attributes:
        reason: why, as the broker said it last; empty when nothing is blocked.
    """

    def __init__(self) -> None:
        """Block nothing."""
        self._flows: dict[Flow, _Blocked] = {}
        self._stalls = 0  # batches in a row of which nothing went through
        self._stalled_since = 0.0
        self._go_on_at = 0.0
        self.reason = ""

    def __bool__(self) -> bool:
        """Tell whether anything is blocked or half open."""
        return bool(self._flows)

    @property
    def blocked(self) -> list[Flow]:
        """The flows of which nothing may be read now."""
        return [flow for flow, blocked in self._flows.items() if not blocked.half_open]

    @property
    def topics(self) -> list[str]:
        """The topics that are concerned."""
        return sorted({topic for _, topic in self._flows})

    def block(
        self, firsts: Mapping[Flow, int], progress: Collection[Flow], reason: str, low: Mapping[int, int]
    ) -> None:
        """Block flows, each time longer unless the message that failed first has gone through since.

        When nothing went through, it may be the broker, and not these topics: the others wait a little as well.

        Args:
            firsts: the flows, and where the first message of each that failed stands.
            progress: the flows of which others went through.
            reason: why.
            low: of their shards, the numbers up to which all that there is has been read.
        """
        now, before = time.monotonic(), (self.reason, self.topics)
        self.reason = reason
        if progress:
            self._stalls = 0
        else:
            self._stalled_since = self._stalled_since if self._stalls else now
            self._stalls += 1
            self._go_on_at = now + exponential(_SHORTEST, self._stalls, _LONGEST_FOR_ALL)
        for flow, seq in firsts.items():
            known = self._flows.get(flow)
            # Not for others that went through: those of another key do each time, and the broker may take its time.
            failures = 1 if known is None or seq > known.seq else known.failures + 1
            pause = exponential(_SHORTEST, failures, LONGEST)
            self._flows[flow] = _Blocked(seq, min(seq - 1, low[flow[0]]), failures, now + pause)
        if (self.reason, self.topics) != before:
            topics = ", ".join(self.topics[:_SHOWN]) + (", ..." if len(self.topics) > _SHOWN else "")
            log.warning(
                "relay: topics blocked, retrying later (%s: %s)",
                topics,
                reason,
                extra={"topics": self.topics, "reason": reason},
            )

    def unblock(self, flows: Collection[Flow]) -> None:
        """Unblock flows: their messages went through, or there are none."""
        if not flows or not self._flows:
            return
        self._stalls = 0
        for flow in flows:
            self._flows.pop(flow, None)
        if self._is_over():
            log.info("relay: topics unblocked")

    def try_due(self) -> dict[int, int]:
        """Half open the flows whose time has come; return their shards, and the numbers above which to read them again.

        A topic is tried in all shards at once: a broker may take its time to say no, and meanwhile all others wait.
        """
        now = time.monotonic()
        due = {topic for (_, topic), blocked in self._flows.items() if not blocked.half_open and blocked.until <= now}
        begin: dict[int, int] = {}
        for (shard, topic), blocked in self._flows.items():
            if topic in due and not blocked.half_open:
                blocked.half_open = True
                begin[shard] = min(begin.get(shard, blocked.above), blocked.above)
        return begin

    def half_open(self, shards: Collection[int]) -> set[Flow]:
        """Return the half open flows of shards, of which nobody knows yet whether they go on."""
        return {flow for flow, blocked in self._flows.items() if blocked.half_open and flow[0] in shards}

    def reset(self) -> None:
        """Note that another server may answer from now on, where what was written later may have lower numbers."""
        for blocked in self._flows.values():
            blocked.above = 0

    def forget(self, shards: Collection[int]) -> None:
        """Forget shards that another relay owns now."""
        self._flows = {flow: blocked for flow, blocked in self._flows.items() if flow[0] not in shards}
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
        due = min((blocked.until for blocked in self._flows.values() if not blocked.half_open), default=None)
        return None if due is None else max(due - time.monotonic(), self.pause)

    def _is_over(self) -> bool:
        if self._flows:
            return False
        self.reason = ""
        self._stalls = 0
        return True
