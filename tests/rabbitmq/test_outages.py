"""A broker that dies, is restarted, freezes or is not there costs time and nothing else."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from scoop_outbox_rabbitmq import publisher as publisher_module

from scoop_outbox.broker.protocol import Subscription
from scoop_outbox.devservers.rabbitmq import RabbitServer
from scoop_outbox.message import Envelope
from tests.rabbitmq.trial import ACKNOWLEDGED, FOR_GOOD, FOR_NOW, Trial, envelope, name, received, verdicts
from tests.waiting import until

# RabbitMQ 3.10 loses the leader of a quorum queue that it has had for less than half a minute when it is killed.


async def test_killed_in_the_middle_and_started_again_nothing_acknowledged_is_lost(
    server: RabbitServer, own_trial: Trial
) -> None:
    topic = name()
    queue = await own_trial.queue(topic)
    # Once in many runs nothing was routed any more to a queue that was bound only a moment before the kill.
    await asyncio.to_thread(server.sync)
    publisher, consumer = await own_trial.publisher(), await own_trial.consumer(queue, topic)
    acknowledged: list[Envelope] = []
    came: dict[str, bytes] = {}
    refused = ending = False

    async def publish() -> None:
        nonlocal refused
        number = 0
        while not ending:
            batch = [envelope(topic, f"k{number % 3}", b"%d" % number) for number in range(number, number + 50)]
            while batch:
                receipts = await publisher.publish(batch)
                assert FOR_GOOD not in verdicts(receipts), receipts
                refused = refused or FOR_NOW in verdicts(receipts)
                acknowledged.extend(
                    one for one, said in zip(batch, receipts, strict=True) if said.status is ACKNOWLEDGED
                )
                batch = [one for one, said in zip(batch, receipts, strict=True) if said.status is FOR_NOW]
                if batch:
                    await asyncio.sleep(0.05)
            number += 50

    async def consume() -> None:
        while True:
            some = await consumer.receive(100, 0.2)
            for one in some:
                came.setdefault(one.envelope.id, one.envelope.body)
            await consumer.acknowledge(some)

    publishing, consuming = asyncio.create_task(publish()), asyncio.create_task(consume())
    await until(lambda: len(came) > 300)
    await asyncio.to_thread(server.kill)
    await until(lambda: refused)
    await until(lambda: consumer.problem)
    await asyncio.to_thread(server.start)
    count = len(came) + 300
    await until(lambda: len(came) > count or publishing.done(), 30)
    ending = True
    await publishing
    await until(lambda: {one.id for one in acknowledged} <= set(came), 30)
    consuming.cancel()
    await asyncio.wait((consuming,))

    assert consumer.problem is None
    # The first arrival of each counts: what the dying broker has not confirmed may have come twice.
    numbers = [int(body) for body in came.values()]
    for key in range(3):
        mine = [number for number in numbers if number % 3 == key]
        assert mine == sorted(mine)


async def test_a_frozen_broker_is_given_up_in_time_and_found_again(server: RabbitServer, own_trial: Trial) -> None:
    topic = name()
    queue = await own_trial.queue(topic)
    publisher = await own_trial.publisher()
    consumer = await own_trial.consumer(queue, topic, heartbeat=2)
    batch = [envelope(topic, "k", b"%d" % number) for number in range(20)]
    await publisher.publish(batch[:10])
    first = await received(consumer, 10)

    server.freeze()
    try:
        began = time.monotonic()
        receipts = await publisher.publish(batch[10:])
        took = time.monotonic() - began
        await until(lambda: consumer.problem)
        await consumer.acknowledge(first)
    finally:
        server.thaw()
    again = await publisher.publish(batch[10:])
    await until(lambda: consumer.problem is None, 20)
    ids: set[str] = set()
    while len(ids) < 20:
        some = await consumer.receive(100, 5)
        assert some
        ids |= {one.envelope.id for one in some}
        await consumer.acknowledge(some)

    assert verdicts(receipts) == [FOR_NOW] * 10
    assert took < 10.5
    assert "has not answered" in receipts[0].reason
    assert verdicts(again) == [ACKNOWLEDGED] * 10
    assert ids == {one.id for one in batch}


async def test_what_is_asked_of_a_frozen_broker_is_not_taken_for_a_cancellation(
    server: RabbitServer, own_trial: Trial
) -> None:
    topic, other = name(), "amq.direct/" + name()
    queue = await own_trial.queue(topic)
    publisher = await own_trial.publisher(heartbeat=2)
    consumer = await own_trial.consumer(queue, topic, heartbeat=2)
    await publisher.publish([envelope(topic, body=b"0")])
    await received(consumer, 1)
    await consumer.pause()

    # The client gives both connections up while an answer is waited for, and cancels what waits.
    server.freeze()
    try:
        _, (receipt,) = await asyncio.gather(consumer.resume(), publisher.publish([envelope(other)]))
        await until(lambda: consumer.problem)
    finally:
        server.thaw()

    assert receipt.status is FOR_NOW
    await until(lambda: consumer.problem is None, 20)
    assert [one.envelope.body for one in await received(consumer, 1)] == [b"0"]
    assert verdicts(await publisher.publish([envelope(topic, body=b"1")])) == [ACKNOWLEDGED]


async def test_a_broker_that_is_short_of_memory_takes_nothing_until_it_has_some(
    server: RabbitServer, own_trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "ANSWER_WITHIN", 2.0)
    topic = name()
    queue = await own_trial.queue(topic)
    publisher = await own_trial.publisher()
    assert verdicts(await publisher.publish([envelope(topic, body=b"0")])) == [ACKNOWLEDGED]

    await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "0.000001")
    try:
        (receipt,) = await publisher.publish([envelope(topic, body=b"1")])
    finally:
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "0.4")
    assert receipt.status is FOR_NOW
    assert "rabbitmqctl status shows whether it is short of memory or disk" in receipt.reason

    async def taken() -> bool:
        return verdicts(await publisher.publish([envelope(topic, body=b"1")])) == [ACKNOWLEDGED]

    await until(taken, 20)
    assert set(await own_trial.bodies(queue)) == {b"0", b"1"}


async def test_nobody_there_is_no_error_but_trouble(unused_tcp_port: int) -> None:
    async with Trial(f"amqp://me:secret@127.0.0.1:{unused_tcp_port},127.0.0.2:{unused_tcp_port}/") as trial:
        publisher, consumer = await trial.publisher(), await trial.consumer("q", "t")

        receipts = await publisher.publish([envelope("t")])
        assert await consumer.receive(1, 0.5) == []
        await trial.broker().prepare(Subscription("s", "q", ("t",)))

        assert verdicts(receipts) == [FOR_NOW]
        for text in (receipts[0].reason, consumer.problem or ""):
            assert "127.0.0.1" in text
            assert "127.0.0.2" in text
            assert "secret" not in text


async def test_the_next_host_is_tried(trial: Trial, unused_tcp_port: int) -> None:
    topic = name()
    await trial.queue(topic)
    url = trial.url.replace("@", f"@127.0.0.1:{unused_tcp_port},")
    async with Trial(url) as other:
        assert verdicts(await (await other.publisher()).publish([envelope(topic)])) == [ACKNOWLEDGED]


async def test_hosts_that_accept_a_connection_and_never_speak_do_not_hide_the_next_one(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less than one of them is waited for.
    monkeypatch.setattr(publisher_module, "ANSWER_WITHIN", 1.0)
    topic = name()
    queue = await trial.queue(topic)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(await asyncio.start_server(say_nothing, "127.0.0.1")) for _ in "12"]
        ports = ",".join(f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in silent)
        other = await stack.enter_async_context(Trial(trial.url.replace("@", f"@{ports},")))
        publisher = await other.publisher()

        said = [verdicts(await publisher.publish([envelope(topic)])) for _ in range(3)]
        consumer = await other.consumer(queue, topic, timeout=1)
        (came,) = await received(consumer, 1)

    assert said == [[FOR_NOW], [FOR_NOW], [ACKNOWLEDGED]]
    assert came.envelope.topic == topic


async def test_a_broker_that_confirms_slowly_is_not_taken_for_one_that_is_silent(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publisher_module, "BEGIN_WITHIN", 0.2)
    topic = name()
    queue = await trial.queue(topic)
    publisher = await trial.publisher()
    # One after the other takes longer than that.
    rest = batch = [envelope(topic, "k", b"%d" % number) for number in range(2000)]
    attempts = []
    while rest:
        receipts = await publisher.publish(rest)
        attempts.append(receipts)
        rest = rest[verdicts(receipts).count(ACKNOWLEDGED) :]

    first = verdicts(attempts[0])
    assert first == sorted(first, key=[ACKNOWLEDGED, FOR_NOW].index)
    assert set(first) == {ACKNOWLEDGED, FOR_NOW}
    assert "confirms slowly" in attempts[0][-1].reason
    assert caplog.messages == []
    assert await trial.bodies(queue) == [one.body for one in batch]


@pytest.mark.parametrize("paused", [False, True])
async def test_acknowledging_after_the_connection_was_lost_is_passed_over(trial: Trial, paused: bool) -> None:
    topic, group = name(), name("group")
    await trial.create(group, topic)
    await (await trial.publisher()).publish([envelope(topic), envelope(topic)])
    consumer = await trial.consumer(group, topic)
    came = await received(consumer, 2)

    if paused:
        await consumer.pause()
    consumer._queues.lose()
    await until(lambda: consumer._queues.channel is not came[0].tag.channel and consumer.problem is None)
    await consumer.acknowledge(came)
    if paused:
        assert await consumer.receive(2, 0.2) == []
        await consumer.resume()

    again = await received(consumer, 2)
    assert [one.envelope.id for one in again] == [one.envelope.id for one in came]
