"""Publishing: every message gets a status, and comes through as it was."""

from __future__ import annotations

import secrets

from scoop_outbox.broker.protocol import Feature, PublishStatus
from scoop_outbox.message import BYTES, JSON, Envelope, uuid7
from scoop_outbox.testing.contract.selection import Contract, needs
from scoop_outbox.testing.contract.trial import Trial, envelope, ids, in_order, named, numbered
from scoop_outbox.wire.headers import PREFIX, TOPIC, key_text, text

# The last one is about as large as a Kafka takes that nobody has told to take more.
_BODIES = (b"", b"\0", b" \r\n padded\0\t\r\n ", b"\xff\xfe\x80", b'{"a":"\xc3\xa9"}', bytes(range(256)) * 3867)
_KEYS = (
    None,
    "",
    "k",
    " padded\n",
    "with space, comma; and\ttab",
    "\N{SNOWMAN} \N{GRINNING FACE}",
    key_text("\\x"),
    key_text(b"\xff\x00\x01"),
    key_text(b"\0"),
)
_HEADERS = {
    "plain": "value",
    "empty": "",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "\N{SNOWMAN}-name": "\N{GRINNING FACE} value",
    "not-utf-8": text(b"\xff\x80\xfe"),
    "long": "x" * 10_000,
    "lines": "one\r\ntwo\n\n",
}


class Publishing(Contract):
    """Tests of one publisher."""

    async def test_bodies_come_byte_for_byte(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        messages = [envelope(topic, "k", body) for body in _BODIES]
        assert len(_BODIES[-1]) > 989_000

        await sender.deliver(messages)
        await member.take(messages)

        came = {one.id: one for one in member.got}
        for sent in messages:
            assert came[sent.id].body == sent.body

    async def test_keys_come_byte_for_byte(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        messages = [envelope(topic, key) for key in _KEYS]

        await sender.deliver(messages)
        await member.take(messages)

        came = {one.id: one for one in member.got}
        assert [came[sent.id].key for sent in messages] == list(_KEYS)

    async def test_headers_come_byte_for_byte(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        sent = Envelope(str(uuid7()), topic, None, b"", JSON, {**_HEADERS, "scoop-home": str(uuid7())})

        await sender.deliver([sent])
        await member.take([sent])

        (came,) = member.got
        assert {name: came.headers.get(name) for name in sent.headers} == sent.headers
        # The adapter may add its own, and the content type where the broker has no better place for it.
        added = set(came.headers) - set(sent.headers) - {"content-type"}
        assert all(name.startswith(PREFIX) for name in added), added

    async def test_topic_id_and_content_type_come_through(self, trial: Trial) -> None:
        topic, other = await trial.topic(), await trial.topic()
        await trial.harness.create([topic, other], trial.subscription(topic, other))
        sender, member = await trial.sender(), await trial.member(topic, other)
        kinds = (JSON, BYTES, "application/vnd.example+json; charset=utf-8", "")
        messages = [Envelope(str(uuid7()), to, "k", b"{}", kind, {}) for kind in kinds for to in (topic, other)]

        await sender.deliver(messages)
        await member.take(messages)

        came = {one.id: one for one in member.got}
        for sent in messages:
            assert (came[sent.id].topic, came[sent.id].content_type) == (sent.topic, sent.content_type)

    async def test_an_empty_batch_is_published_at_once(self, trial: Trial) -> None:
        sender = await trial.sender()

        assert list(await sender.once([])) == []

    async def test_a_batch_without_keys_comes_whole(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        messages = [envelope(topic) for _ in range(500)]

        await sender.deliver(messages)
        await member.take(messages)

        assert ids(member.got) == ids(messages)

    async def test_a_message_says_where_it_was_published_as_the_broker_says_that_it_will(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        messages = [envelope(topic)]

        await sender.deliver(messages)
        await member.take(messages)

        assert [one.headers[TOPIC] for one in member.got] == [trial.broker.published_as(topic)]

    @needs(Feature.ORDER_PER_KEY)
    async def test_messages_of_a_key_come_in_order(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        messages = numbered(topic, ["a", "b", "c", "d"], range(100))

        for start in range(0, len(messages), 80):
            await sender.deliver(messages[start : start + 80])
        await member.take(messages)

        assert in_order(member.got) == {key: list(range(100)) for key in ("a", "b", "c", "d")}

    @needs(Feature.KNOWS_TOPICS)
    async def test_an_unknown_topic_fails_for_good_and_stops_no_other(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        good = numbered(topic, ["a", "b"], range(10))
        lost = envelope(named("missing"), "other")
        batch = [*good[:10], lost, *good[10:]]

        receipts = await sender.all(batch, 45)
        again = await sender.all([envelope(topic, "a", b"10"), lost], 45)
        await member.take(good)

        verdicts = [receipt.status for receipt in receipts]
        assert (
            verdicts
            == [PublishStatus.ACKNOWLEDGED] * 10 + [PublishStatus.PERMANENT] + [PublishStatus.ACKNOWLEDGED] * 10
        )
        assert [receipt.status for receipt in again] == [PublishStatus.ACKNOWLEDGED, PublishStatus.PERMANENT]
        assert lost.topic in receipts[10].reason, "the reason names the topic"

    @needs(Feature.KNOWS_TOPICS, Feature.ORDER_PER_KEY)
    async def test_order_is_kept_around_a_message_that_fails_for_good(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        missing = named("missing")
        batches = [
            [*numbered(topic, "ab", range(start, start + 5)), envelope(missing, "a"), envelope(missing, "b")]
            for start in range(0, 25, 5)
        ]

        for batch in batches:
            await sender.all(batch, 45)
        await member.take([one for batch in batches for one in batch if one.topic == topic])

        assert in_order(member.got) == {"a": list(range(25)), "b": list(range(25))}

    @needs(Feature.LIMITS_SIZE)
    async def test_a_message_that_is_too_large_fails_for_good_and_stops_no_other(self, trial: Trial) -> None:
        topic = await trial.topic()
        sender, member = await trial.sender(), await trial.member(topic)
        good = numbered(topic, "ab", range(5))
        # Random: some clients compress, and the broker judges what it is sent.
        large = envelope(topic, "a", secrets.token_bytes(trial.harness.oversize))
        batch = [*good[:4], large, *good[4:]]

        receipts = await sender.all(batch)
        after = numbered(topic, "ab", range(5, 10))
        await sender.deliver(after)
        await member.take([*good, *after])

        assert receipts[4].status is PublishStatus.PERMANENT
        assert all(receipt.status is PublishStatus.ACKNOWLEDGED for receipt in [*receipts[:4], *receipts[5:]])
        assert large.id not in {one.id for one in member.got}
        if Feature.ORDER_PER_KEY in self.features:
            assert in_order(member.got) == {"a": list(range(10)), "b": list(range(10))}

    @needs(Feature.KNOWS_TOPICS)
    async def test_nothing_is_created_unless_asked(self, trial: Trial) -> None:
        topic = named("missing")
        subscription = trial.subscription(topic)

        await (await trial.sender()).all([envelope(topic)], 45)
        before = await trial.broker.topology([topic], subscription, create=False)
        created = await trial.broker.topology([topic], subscription, create=True)
        after = await trial.broker.topology([topic], subscription, create=True)

        assert before
        assert not any(item.exists for item in before)
        assert [item.text for item in created] == [item.text for item in before] == [item.text for item in after]
        assert not any(item.exists for item in created)
        assert all(item.exists for item in after)
        assert any(topic in item.text for item in before)
