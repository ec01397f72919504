"""What has to exist at the broker, and whether it does."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource, ChannelNotFoundEntity

from scoop_outbox.broker import BrokerError, Resource
from scoop_outbox_rabbitmq.connection import REFUSED, Link, explain
from scoop_outbox_rabbitmq.route import Routes, check_exchange_name, check_queue_name, route
from scoop_outbox_rabbitmq.settings import Settings

Binding = tuple[str, str, str]
"""Queue, exchange, routing key."""

_ALWAYS_THERE = {"amq.direct", "amq.fanout", "amq.headers", "amq.match", "amq.topic"}
_UNLIMITED = -1
# No queue takes a priority that is no number, and RabbitMQ looks at permissions first: so nothing is delivered.
_REFUSED_BY_EVERY_QUEUE = {"x-priority": "none"}


async def exchange_exists(link: Link, exchange: str) -> bool | None:
    """Tell whether there is an exchange of this name; None when it is not permitted to ask."""
    return await _exists(link, "exchange_declare", exchange=exchange)


async def queue_exists(link: Link, queue: str) -> bool | None:
    """Tell whether there is a queue of this name; None when it is not permitted to ask.

    Raises:
        BrokerError: there is, and it is another connection's alone.
    """
    try:
        return await _exists(link, "queue_declare", queue=queue)
    except ChannelLockedResource:
        raise BrokerError(
            f"queue {queue!r} is exclusive to another connection: a service needs a durable queue of its own"
        ) from None


async def _exists(link: Link, declare: str, **names: str) -> bool | None:
    channel = await link.channel(publisher_confirms=False)
    try:
        await getattr(channel, declare)(**names, passive=True)
    except ChannelNotFoundEntity:
        return False
    except ChannelAccessRefused:
        return None
    await channel.close()
    return True


async def _nothing(_: DeliveredMessage) -> None:
    """Take what never comes."""


async def check(link: Link, routes: Routes, settings: Settings) -> None:
    """See whether a subscription can work.

    Raises:
        BrokerError: what is missing or not permitted, and how to mend it.
    """
    for queue in routes.queues:
        channel = await link.channel(publisher_confirms=False)
        try:
            if await queue_exists(link, queue) is False:
                raise _missing_queue(queue, routes)
            await channel.basic_consume(queue, _nothing, arguments=dict(_REFUSED_BY_EVERY_QUEUE))
        except ChannelAccessRefused as error:
            raise refusal(error, queue, routes, settings) from None
        except ChannelNotFoundEntity:
            raise _missing_queue(queue, routes) from None
        except REFUSED:
            continue
        finally:
            with contextlib.suppress(Exception):
                await channel.close()
    for exchange in sorted({one.exchange for one in routes.bound.values()} - {""}):
        if await exchange_exists(link, exchange) is False:
            raise BrokerError(
                f"there is no exchange {exchange!r}, so nothing can come from it: declare it, or run "
                "scoop-outbox topology apply"
            )


async def topology(
    link: Link, topics: Sequence[str], routes: Routes | None, settings: Settings, bound: set[Binding], *, create: bool
) -> list[Resource]:
    """Return what has to exist, and create what does not.

    Args:
        link: a connection.
        topics: what is published on.
        routes: what is received, if anything.
        settings: what is created.
        bound: the bindings that are known to be there, as AMQP cannot ask for them; those made now are added.
        create: whether to create anything.

    Raises:
        BrokerError: it is not permitted, something of the name is different, or the client cannot write the name.
    """
    to = [route(topic, settings.exchange) for topic in topics]
    wanted = {} if routes is None else routes.bound
    exchanges = {one.exchange for one in (*to, *wanted.values()) if one.exchange} - _ALWAYS_THERE
    queues = {one.key for one in to if one.is_queue} | set(() if routes is None else routes.queues)
    for exchange in exchanges:
        check_exchange_name(exchange)
    for queue in queues:
        check_queue_name(queue)
    items = []
    for exchange in sorted(exchanges):
        there = await exchange_exists(link, exchange)
        if create and not there:
            kind = settings.exchange_type
            await _create(link, "exchange_declare", exchange=exchange, exchange_type=kind, durable=True)
        items.append(Resource(f"exchange {exchange} ({settings.exchange_type}, durable)", there))
    for queue in sorted(queues):
        there = await queue_exists(link, queue)
        if create and not there:
            await _create(link, "queue_declare", queue=queue, durable=True, arguments=queue_arguments(link, settings))
        items.append(Resource(f"queue {queue} (quorum)", there))
    for one in wanted.values():
        if routes is None or one.is_queue:
            continue
        binding = (routes.queue, one.exchange, one.key)
        # AMQP cannot ask for bindings.
        known = True if binding in bound else None
        items.append(Resource(f"binding of queue {routes.queue} to exchange {one.exchange} for {one.key}", known))
        if create:
            await _create(link, "queue_bind", queue=routes.queue, exchange=one.exchange, routing_key=one.key)
            bound.add(binding)
    return items


def queue_arguments(link: Link, settings: Settings) -> dict[str, Any]:
    """Return the arguments of a queue that is created."""
    arguments: dict[str, Any] = {"x-queue-type": "quorum"}
    if link.limits_deliveries:
        # RabbitMQ 4 drops what was delivered 20 times; a database that is away for a while would be enough for that.
        arguments["x-delivery-limit"] = _UNLIMITED
    if settings.single_active_consumer:
        arguments["x-single-active-consumer"] = True
    return {**arguments, **settings.queue_arguments}


async def _create(link: Link, method: str, **values: Any) -> None:
    channel = await link.channel(publisher_confirms=False)
    what = values.get("queue") or values.get("exchange")
    try:
        await getattr(channel, method)(**values)
    except ChannelAccessRefused as error:
        raise BrokerError(
            f"{method} of {what!r} is not permitted ({explain(error)}): rabbitmqctl set_permissions grants configure "
            "on what is created, write on the queue and read on the exchange of a binding"
        ) from None
    except REFUSED as error:
        raise BrokerError(f"{method} of {what!r} is refused by RabbitMQ: {explain(error)}") from None
    await channel.close()


def refusal(error: BaseException, queue: str, wanted: Routes, settings: Settings) -> BrokerError:
    """Return why a queue cannot be consumed from, and how to mend it."""
    if isinstance(error, ChannelNotFoundEntity):
        return _missing_queue(queue, wanted)
    if isinstance(error, ChannelAccessRefused):
        return BrokerError(
            f"user {settings.user!r} may not read queue {queue!r}, or somebody consumes from it exclusively "
            f"({explain(error)}): rabbitmqctl set_permissions -p {settings.vhost} {settings.user} CONFIGURE WRITE READ"
        )
    return BrokerError(f"queue {queue!r} cannot be consumed from: {explain(error)}")


def _missing_queue(queue: str, wanted: Routes) -> BrokerError:
    topics = list(wanted.bound) if queue == wanted.queue else [wanted.others[queue]]
    return BrokerError(
        f"there is no queue {queue!r} for {', '.join(topics)}: run scoop-outbox topology apply, which declares "
        "and binds it, or name an existing queue with the setting queue.<topic>"
    )
