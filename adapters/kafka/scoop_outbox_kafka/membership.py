"""One membership in the group of a service: from the making of a client until that leaves the group."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from scoop_outbox.broker import Subscription, get_logger
from scoop_outbox_kafka.assignment import Assignment
from scoop_outbox_kafka.client import make
from scoop_outbox_kafka.positions import Positions
from scoop_outbox_kafka.problems import Problems
from scoop_outbox_kafka.record import Place
from scoop_outbox_kafka.settings import Settings
from scoop_outbox_kafka.start import ANSWER, Part, commit, explain_silence, starts, unstarted

log = get_logger(__name__)

_COMMIT_AGAIN = 1.0


class Membership:
    """One client of librdkafka, and what it has as a member of its group.

    All of it is used on one thread, that of the client. There librdkafka calls back, too: `_on_assign`, `_on_revoke`
    and `_on_lost` when a rebalance gives or takes partitions, `_on_commit` when the broker has answered a commit, all
    of them while the client is polled or closed.

    Args:
        settings: where, and how.
        subscription: of which group, and to what.
        assignment: the partitions of the consumer; it outlives a membership, because its generations do.
        problems: those of the consumer.

    Attributes:
        is_joined: whether it has subscribed.
        is_in_group: whether the group has let it in.
    """

    def __init__(
        self, settings: Settings, subscription: Subscription, assignment: Assignment, problems: Problems
    ) -> None:
        """Make a client that is no member of its group yet.

        Raises:
            BrokerError: the settings do not go together.
        """
        self._settings = settings
        self._subscription = subscription
        self._assignment = assignment
        self._problems = problems
        self._configuration = settings.for_consumer(f"scoop-{subscription.service}", subscription.group)
        strategies = str(self._configuration.get("partition.assignment.strategy", "cooperative"))
        self._positions = Positions(subscription.group, assignment, problems, incremental="cooperative" in strategies)
        self.is_joined = False
        self.is_in_group = False
        self._pause_is_due = False
        self._commit_at = 0.0
        callbacks = {"error_cb": problems.on_error, "on_commit": self._on_commit}
        self._client = make(Consumer, settings, {**self._configuration, **callbacks})

    def join(self, wait: float) -> bool:
        """Lay down where the group begins, and join it; answer whether the broker could be asked.

        A group that has members takes no offsets from others. Then a member commits the start when it is assigned
        the partition; until then it is kept here.

        Raises:
            BrokerError: a topic, a permission or the start is missing.
        """
        group, topics, start = self._subscription.group, self._subscription.topics, self._subscription.start
        client, settings = self._client, self._settings
        timeout = min(max(wait, 2.0), ANSWER)
        try:
            fresh = unstarted(client, group, topics, timeout)
            begin = starts(client, settings, self._configuration, group, fresh, start, timeout)
        except KafkaException as error:
            client.poll(0.1)  # what is behind it is told to Problems.on_error
            self._problems.unreachable(error.args[0])
            explain_silence(error.args[0], settings, group, timeout)
            return False
        if begin:
            log.info(
                "kafka: new group starts (group %s, topics %s, start %s)",
                *(group, sorted({topic for topic, _ in fresh}), start),
                extra={"group": group},
            )
            if commit(client, group, [TopicPartition(*part, offset) for part, offset in begin.items()]):
                # Kept no longer: a topic that is created anew begins at its beginning.
                begin = {}
        self._positions.begin(begin)
        client.subscribe(list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)
        self.is_joined = True
        # With the newer protocol nobody says so to a member that gets nothing.
        self.is_in_group = str(self._configuration.get("group.protocol", "")).lower() == "consumer"
        self._problems.reached()
        return True

    def poll(self, limit: int, wait: float) -> Sequence[Message]:
        """Let librdkafka call back, and return messages and errors, as soon as there is one.

        Args:
            limit: how many at most.
            wait: seconds for the first one.

        Raises:
            BrokerError: it is not permitted to use the group any more.
        """
        client = self._client
        self._problems.look(client, self._subscription.topics[0])
        self._commit_again()
        self._positions.find(client)
        # Not consume() alone: it waits until it has all that it was asked for, or the whole time.
        first = client.poll(wait)
        if first is None:
            return []
        return [first, *client.consume(limit - 1, 0)] if limit > 1 else [first]

    def pause_if_due(self) -> None:
        """Pause what was assigned meanwhile, if the consumer is paused. Behind `poll`, whose messages are kept then.

        librdkafka hands them out once: an exception here must not lose them.
        """
        if self._pause_is_due:
            self._pause_is_due = False
            self._assignment.apply_pause(self._client)

    def reposition(self, part: Part) -> None:
        """Find out, before the next messages, where to go on in a partition in which librdkafka does not know it."""
        self._positions.lose(part)

    def acknowledge(self, places: Iterable[Place]) -> None:
        """Commit the offsets behind messages, without waiting for the broker's word."""
        self._assignment.acknowledge(places)
        self._commit()

    def apply_pause(self) -> None:
        """Take no more messages, or take them again, as the assignment says."""
        self._assignment.apply_pause(self._client)

    def leave(self) -> None:
        """Commit what is acknowledged, if a broker can be reached, and leave the group."""
        offsets = self._assignment.uncommitted()
        if offsets and self._problems.outage is None:
            commit(self._client, self._subscription.group, offsets)
        self.abandon()

    def abandon(self) -> None:
        """Leave the group, and commit nothing."""
        self._assignment.clear()
        # Without this the group would miss us for the whole session timeout.
        self._client.close()

    def _commit(self) -> None:
        offsets = self._assignment.uncommitted()
        if not offsets:
            return
        try:
            self._client.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            log.info("kafka: offsets will be committed later (%s)", error.args[0].str())
            return
        self._assignment.told(offsets)

    def _commit_again(self) -> None:
        """Commit once more what the broker has not taken."""
        if time.monotonic() >= self._commit_at:
            self._commit_at = time.monotonic() + _COMMIT_AGAIN
            self._commit()

    def _on_assign(self, _: Consumer, parts: list[TopicPartition]) -> None:
        self.is_in_group = True
        self._assignment.gain((one.topic, one.partition) for one in parts)
        for one in parts:
            self._problems.clear_topic(one.topic)
        # An assignment begins unpaused. It takes effect when this returns; a message may come through until then.
        self._pause_is_due = self._assignment.paused and bool(parts)

    def _on_revoke(self, client: Consumer, parts: list[TopicPartition]) -> None:
        gone = [(one.topic, one.partition) for one in parts]
        offsets = self._assignment.uncommitted(gone)
        if offsets:
            commit(client, self._subscription.group, offsets)
        self._forget(gone)

    def _on_lost(self, _: Consumer, parts: list[TopicPartition]) -> None:
        # Others have them already: a commit would be theirs to undo.
        self.is_in_group = False
        self._forget([(one.topic, one.partition) for one in parts])

    def _forget(self, parts: list[Part]) -> None:
        self._assignment.lose(parts)
        self._positions.forget(parts)

    def _on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        refused = offsets if error is not None else [one for one in offsets if one.error is not None]
        if refused:
            self._assignment.doubt(refused)
