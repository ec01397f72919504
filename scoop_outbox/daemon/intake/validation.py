"""Validation: why deliveries cannot be taken in, as far as that is seen before they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scoop_outbox.broker.protocol import Delivery
from scoop_outbox.core.plans.intake import read_listening
from scoop_outbox.core.plans.subscriptions import Spelling
from scoop_outbox.message import Envelope
from scoop_outbox.saga import Saga
from scoop_outbox.store.async_driver import AsyncDriver
from scoop_outbox.wire.headers import ID
from scoop_outbox.wire.limits import Limits
from scoop_outbox.wire.validation import unstorable


class Validation:
    """Looks at deliveries to one service.

    Args:
        service: whose they are.
        sagas: its sagas by name.
        spellings: how their topics may be written at the broker.
        limits: what a message may hold.
    """

    def __init__(
        self, service: str, sagas: Mapping[str, Saga], spellings: Mapping[str, Spelling], limits: Limits
    ) -> None:
        """Hold what is known of the service."""
        self._service = service
        self._sagas = list(sagas.values())
        self._names = {name for saga in self._sagas for name in (saga.name, *saga.formerly)}
        self._spellings = spellings
        self._limits = limits

    async def unreadable(self, driver: AsyncDriver, envelopes: Sequence[Envelope]) -> dict[str, str]:
        """Return of the messages that no saga here can read the reason, by their ids."""
        found = {one.id: (one.topic, why) for one in envelopes if (why := self._why_unreadable(one)) is not None}
        topics = {topic for topic, _ in found.values()}
        if not topics:
            return {}
        # A newer version of this service may have a saga that can read what ours cannot.
        known = await driver.run(read_listening(self._service, list(topics)))
        readable = {topic for topic, sagas in known.items() if sagas - self._names}
        return {message_id: why for message_id, (topic, why) in found.items() if topic not in readable}

    def defect(self, one: Delivery) -> str | None:
        """Return what is wrong with a delivery, whoever listens. An adapter may have made it without `delivery()`."""
        return one.defect or self._limits.defect(len(one.envelope.body)) or unstorable(one.envelope)

    def _why_unreadable(self, envelope: Envelope) -> str | None:
        """Say why no saga of this process that listens on the topic can read a message from outside.

        One that was launched by scoop_outbox fails its run instead. What no saga here listens on is not for this
        process to judge: the home knows who is subscribed.
        """
        if ID in envelope.headers:
            return None
        reason = None
        for saga in self._sagas:
            if self._spellings[saga.topic].means(saga.topic, envelope.topic):
                try:
                    envelope.check(saga.schema)
                except Exception as error:  # noqa: BLE001 - a type of the user's may raise what it likes
                    reason = str(error) or type(error).__name__
                else:
                    return None
        return reason
