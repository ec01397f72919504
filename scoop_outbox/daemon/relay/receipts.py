"""What became of a batch, sorted by what the relay has to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from scoop_outbox._cancellation import own_cancellation_only
from scoop_outbox._log import get_logger
from scoop_outbox.broker.protocol import ACKNOWLEDGED, Publisher, PublishStatus, Receipt
from scoop_outbox.core.plans.outbox import Flow, Outgoing, Place
from scoop_outbox.errors import BrokerError
from scoop_outbox.message import Envelope

log = get_logger(__name__)


@dataclass(slots=True)
class SortedReceipts:
    """What became of a batch.

    Attributes:
        published: where those stand that were acknowledged.
        topics: their topics.
        unpublishable: where those stand that failed for good, and why.
        failed: how many failed for now.
        firsts: the topics within shards of which some failed for now, and where the first of each stands.
        progress: those of which some did not, if any failed.
        reason: why the first one failed for now.
    """

    published: list[Place] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)
    unpublishable: dict[Place, str] = field(default_factory=dict)
    failed: int = 0
    firsts: dict[Flow, int] = field(default_factory=dict)
    progress: set[Flow] = field(default_factory=set)
    reason: str = ""


def sort_receipts(batch: Outgoing, receipts: Sequence[Receipt]) -> SortedReceipts:
    """Sort a batch by its receipts."""
    if receipts.count(ACKNOWLEDGED) == len(batch):  # the rule, and there are many
        return SortedReceipts(batch.places, [one.topic for one in batch.envelopes])
    found = SortedReceipts()
    for place, envelope, receipt in zip(batch.places, batch.envelopes, receipts, strict=True):
        flow = place[0], envelope.topic
        if receipt.status is PublishStatus.RETRIABLE:
            found.failed += 1
            found.firsts.setdefault(flow, place[1])
            found.reason = found.reason or receipt.reason or "the broker does not take messages"
            continue
        found.progress.add(flow)
        if receipt.status is PublishStatus.ACKNOWLEDGED:
            found.published.append(place)
            found.topics.append(envelope.topic)
        else:
            found.unpublishable[place] = receipt.reason
    return found


async def publish(publisher: Publisher, batch: Sequence[Envelope]) -> Sequence[Receipt]:
    """Have messages published, and return a receipt for each, whatever the publisher does."""
    try:
        with own_cancellation_only():
            receipts = await publisher.publish(batch)
    except BrokerError as error:
        return [Receipt(PublishStatus.RETRIABLE, str(error))] * len(batch)
    except Exception as error:
        log.exception("relay: publisher failed, its messages stay in the outbox")
        return [Receipt(PublishStatus.RETRIABLE, type(error).__name__)] * len(batch)
    if len(receipts) != len(batch):
        log.error(
            "relay: publisher returned a wrong number of receipts (%d for %d messages)", len(receipts), len(batch)
        )
        return [Receipt(PublishStatus.RETRIABLE, "no receipts")] * len(batch)
    return receipts
