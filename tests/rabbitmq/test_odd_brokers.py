"""Brokers that read no more, block, refuse or end what they have just begun: a fake one does so when it is wanted."""

import asyncio
import time

import pytest
from pamqp import commands
from scoop_outbox_rabbitmq import publisher as publisher_module
from scoop_outbox_rabbitmq.consumer import RabbitConsumer

from scoop_outbox.broker.protocol import Subscription
from scoop_outbox.errors import BrokerError
from tests.rabbitmq.fake import FakeBroker, Peer
from tests.rabbitmq.trial import ACKNOWLEDGED, FOR_NOW, Trial, envelope, name, received, verdicts
from tests.waiting import until

LIMIT = commands.Connection.Close(530, "NOT_ALLOWED - connection limit (1) is reached", 0, 0)
SUBSCRIPTION = Subscription("s", "q", ("t",))


async def test_a_broker_that_reads_no_more_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "ANSWER_WITHIN", 1.0)

    async def never_again(peer: Peer, channel: int, frame: object) -> None:
        if isinstance(frame, commands.Basic.Publish):
            await asyncio.Event().wait()

    async with FakeBroker(never_again) as broker, Trial(broker.url) as trial:
        # The heartbeat ends nothing in this time.
        publisher = await trial.publisher(heartbeat=60)
        assert await publisher.probe() is None
        link = publisher._channels.link
        assert link is not None
        async with asyncio.timeout(20):
            receipts = await publisher.publish([envelope("t", body=bytes(1_000_000)) for _ in range(16)])
        # Nothing goes on behind it, either.
        await until(lambda: link.is_closed)

    assert verdicts(receipts) == [FOR_NOW] * 16
    assert "has not answered" in receipts[0].reason


async def test_a_broker_without_a_limit_of_frames_takes_any_message() -> None:
    async with FakeBroker(frame_max=0) as broker, Trial(broker.url) as trial:
        receipts = await (await trial.publisher()).publish([envelope("t", body=b"x" * 300_000), envelope("t", big="x")])

        assert verdicts(receipts) == [ACKNOWLEDGED] * 2
        assert [len(body) for body in broker.peers[0].published] == [300_000, 2]


async def test_nothing_more_is_sent_to_a_broker_that_blocks_publishers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "ANSWER_WITHIN", 4.0)
    enough = asyncio.Event()

    async def block(peer: Peer, channel: int, frame: object) -> None:
        if isinstance(frame, commands.Basic.Publish) and not enough.is_set():
            # RabbitMQ says so once something is published, and does not read on.
            peer.send(0, commands.Connection.Blocked("low on memory"))
            await enough.wait()
            peer.send(0, commands.Connection.Unblocked())

    async with FakeBroker(block) as broker, Trial(broker.url) as trial:
        publisher = await trial.publisher()
        first, *later = [await publisher.publish([envelope("t", body=b"%d" % number)]) for number in range(3)]
        problem = await publisher.probe()
        enough.set()

        async def taken() -> bool:
            return verdicts(await publisher.publish([envelope("t", body=b"last")])) == [ACKNOWLEDGED]

        await until(taken, 20)

        assert verdicts((*first, *later[0], *later[1])) == [FOR_NOW] * 3
        said = "RabbitMQ blocks publishers: it is short of memory or disk; rabbitmqctl status shows it"
        assert [later[0][0].reason, later[1][0].reason, problem] == [said] * 3
        assert [peer.published for peer in broker.peers] == [[b"0", b"last"]]


async def test_a_host_that_refuses_does_not_hide_the_next_one(trial: Trial) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    await (await trial.publisher()).publish([envelope(topic)])

    async with FakeBroker(refusal=LIMIT) as full, Trial(trial.url.replace("@", f"@{full.address},")) as other:
        await other.broker().prepare(Subscription("s", group, (topic,)))
        consumer = await other.consumer(group, topic)
        assert len(await received(consumer, 1)) == 1
        assert len(full.peers) >= 2, "it was asked first"


async def test_what_a_host_refuses_is_said_when_no_other_one_accepts(unused_tcp_port: int) -> None:
    async with FakeBroker(refusal=LIMIT) as full:
        for hosts in (f"{full.address},127.0.0.1:{unused_tcp_port}", f"127.0.0.1:{unused_tcp_port},{full.address}"):
            async with Trial(f"amqp://me:secret@{hosts}/") as trial:
                with pytest.raises(BrokerError, match=r"connection limit \(1\) is reached"):
                    await trial.broker().prepare(SUBSCRIPTION)


@pytest.mark.parametrize("host", ["a..b", "ho st"])
async def test_a_host_that_can_be_none_is_said_and_the_next_one_is_tried(trial: Trial, host: str) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    async with Trial(f"amqp://me:secret@{host}/") as nowhere, Trial(trial.url.replace("@", f"@{host},")) as other:
        consumer = await nowhere.consumer("q", "t")
        for attempt in (nowhere.broker().prepare(SUBSCRIPTION), received(consumer, 1)):
            with pytest.raises(BrokerError, match=f"host '{host}' in the broker URL") as caught:
                await attempt
            assert "secret" not in str(caught.value)
        (receipt,) = await (await nowhere.publisher()).publish([envelope("t")])
        assert verdicts(await (await other.publisher()).publish([envelope(topic)])) == [ACKNOWLEDGED]

    assert receipt.status is FOR_NOW
    assert f"host '{host}' in the broker URL" in receipt.reason


async def test_a_connection_that_ends_again_and_again_is_opened_more_and_more_seldom() -> None:
    opened: list[float] = []
    consumers: list[RabbitConsumer] = []

    async def end(peer: Peer, channel: int, frame: object) -> bool:
        if not isinstance(frame, commands.Basic.Consume):
            return False
        opened.append(time.monotonic())
        peer.send(channel, commands.Basic.ConsumeOk(frame.consumer_tag))
        await until(lambda: consumers[0].problem is None)
        peer.send(0, commands.Connection.Close(320, "CONNECTION_FORCED - as in this test", 0, 0))
        return True

    async with FakeBroker(end) as broker, Trial(broker.url) as trial:
        consumers.append(await trial.consumer("q", "t"))
        assert await consumers[0].receive(1, 0.1) == []
        await until(lambda: len(opened) == 5, 30)

    assert opened[4] - opened[3] >= 0.8
