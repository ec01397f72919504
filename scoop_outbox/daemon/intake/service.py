"""The intake of a service: what it is made of."""

from __future__ import annotations

from collections.abc import Mapping

from scoop_outbox.broker.protocol import Broker, Subscription
from scoop_outbox.core.plans.claim import Hints
from scoop_outbox.daemon.announcer import Announcer, spellings
from scoop_outbox.daemon.intake.backpressure import HIGH_WATER, LOW_WATER, Backpressure
from scoop_outbox.daemon.intake.inbox import Inbox
from scoop_outbox.daemon.intake.intake import Intake
from scoop_outbox.daemon.intake.validation import Validation
from scoop_outbox.saga import Saga
from scoop_outbox.store.home import Home
from scoop_outbox.wire.signature import ControlKeys


def service_intake(
    home: Home,
    broker: Broker,
    subscription: Subscription,
    sagas: Mapping[str, Saga],
    hints: Hints,
    announcer: Announcer | None = None,
    keys: ControlKeys | None = None,
    *,
    high: int = HIGH_WATER,
    low: int = LOW_WATER,
) -> Intake:
    """Return the intake of a service.

    Args:
        home: where messages go.
        broker: where they come from.
        subscription: what the service wants to receive.
        sagas: the service's sagas by name.
        hints: told which runs have mail.
        announcer: announces the service before anything is received, if that could not be done before.
        keys: the control keys of this home, if it has any.
        high: no more is taken in while so many runs lie waiting for a slot...
        low: ...until there are no more than so many.
    """
    service = subscription.service
    validation = Validation(service, sagas, spellings(broker, subscription.topics), home.limits)
    backpressure = Backpressure(service, sagas, high, low)
    return Intake(home, broker, subscription, Inbox(service, validation, hints, keys), announcer, backpressure)
