"""The door for adapters: all that an adapter imports of scoop_outbox.

docs/writing-an-adapter.md tells what an adapter has to do; `scoop_outbox.testing.contract` tests that it does.
"""

from scoop_outbox._cancellation import StrayCancellationError, own_cancellation_only
from scoop_outbox._log import get_logger
from scoop_outbox.broker.incoming import delivery
from scoop_outbox.broker.protocol import (
    ACKNOWLEDGED,
    Broker,
    Consumer,
    Delivery,
    Feature,
    Publisher,
    PublishStatus,
    Receipt,
    Resource,
    Subscription,
)
from scoop_outbox.errors import BrokerError
from scoop_outbox.message import BYTES, JSON, Envelope, uuid7
from scoop_outbox.wire import headers as wire

__all__ = [
    "ACKNOWLEDGED",
    "BYTES",
    "JSON",
    "Broker",
    "BrokerError",
    "Consumer",
    "Delivery",
    "Envelope",
    "Feature",
    "PublishStatus",
    "Publisher",
    "Receipt",
    "Resource",
    "StrayCancellationError",
    "Subscription",
    "delivery",
    "get_logger",
    "own_cancellation_only",
    "uuid7",
    "wire",
]
