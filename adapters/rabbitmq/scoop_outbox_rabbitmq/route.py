"""A topic is an exchange and a routing key, and what arrives under those is the topic's again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from scoop_outbox.broker import BrokerError

_ONE, _ANY = "*", "#"
_WORD = "[^.]*"

_NAME = re.compile(r"[a-zA-Z0-9\-_.:@#,/+ ]*")
_LONGEST_EXCHANGE = 127
_LONGEST_QUEUE = 255


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message is published: an exchange, or the nameless one, which leads into the queue that the key names."""

    exchange: str
    key: str

    @property
    def is_pattern(self) -> bool:
        """Whether the key, in a binding, stands for more than itself."""
        return not self.is_queue and any(word in (_ONE, _ANY) for word in self.key.split("."))

    @property
    def is_queue(self) -> bool:
        """Whether it leads straight into the queue that the key names."""
        return not self.exchange

    def matches(self, other: Route) -> bool:
        """Tell whether a binding with this route gets what is published on the other."""
        if self.exchange != other.exchange:
            return False
        if not self.is_pattern:
            return self.key == other.key
        return re.fullmatch(_expression(self.key, _WORD), other.key) is not None

    def __str__(self) -> str:
        return f"{quote(self.exchange, safe='')}/{self.key}"


def route(topic: str, default_exchange: str) -> Route:
    """Return where messages of a topic are published.

    Args:
        topic: `exchange/routing.key`, `/queue`, or a routing key alone.
        default_exchange: the exchange of a routing key alone.

    Raises:
        BrokerError: the exchange's name cannot be one.
    """
    exchange, slash, key = topic.partition("/")
    if not slash:
        return Route(default_exchange, topic)
    try:
        return Route(unquote(exchange, errors="strict"), key)
    except UnicodeDecodeError:
        raise BrokerError(
            f"topic {topic!r}: the exchange before the slash is no text once its %xx are decoded"
        ) from None


def topic_of(where: Route, default_exchange: str) -> str:
    """Return the topic whose messages are published on a route, in its shortest form.

    Args:
        where: the route.
        default_exchange: the exchange of topics without one.
    """
    return where.key if _may_be_alone(where, default_exchange) else str(where)


def pattern(where: Route, default_exchange: str) -> str | None:
    """Return the regular expression of the topics whose messages a binding with wildcards gets; None without any.

    Args:
        where: the binding's exchange and routing key.
        default_exchange: the exchange of topics without one: these are matched in both their forms.
    """
    if not where.is_pattern:
        return None
    forms = [re.escape(f"{exchange}/") + _expression(where.key, _WORD) for exchange in _spelt(where.exchange)]
    if _may_be_alone(where, default_exchange):
        forms.append(_expression(where.key, "[^./]*"))
    return f"^(?:{'|'.join(forms)})$"


def names(where: Route, default_exchange: str) -> list[str]:
    """Return the topics, however written, whose messages are published on a route without wildcards; else nothing."""
    if where.is_pattern or where.is_queue:
        return []
    alone = [where.key] if _may_be_alone(where, default_exchange) else []
    return [*(f"{exchange}/{where.key}" for exchange in _spelt(where.exchange)), *alone]


def _may_be_alone(where: Route, default_exchange: str) -> bool:
    """Tell whether a routing key says it all."""
    return where.exchange == default_exchange and bool(where.key) and "/" not in where.key


def _spelt(exchange: str) -> list[str]:
    """Return an exchange as it may be written: with %xx, and without, if that can be read as it."""
    without = [] if "/" in exchange or unquote(exchange) != exchange else [exchange]
    return list(dict.fromkeys((quote(exchange, safe=""), *without)))


def _expression(key: str, word: str) -> str:
    """Return the regular expression of the routing keys that a key stands for, its wildcards made of such words."""
    expression, leads = "", True  # whether the next word is the first one, with no dot before it
    words = key.split(".")
    if not all(one == _ANY for one in words):
        expression = r"(?!\Z)"  # an empty key has no word, not an empty one
    for position, one in enumerate(words):
        if one != _ANY:
            expression += ("" if leads else r"\.") + (word if one == _ONE else re.escape(one))
            leads = False
        elif not leads:
            expression += rf"(?:\.{word})*"
        elif position < len(words) - 1:
            expression += rf"(?:{word}\.)*"
        else:
            expression += rf"(?:{word}(?:\.{word})*)?"
    return expression


def check_exchange_name(exchange: str) -> None:
    """See whether the client can write an exchange's name.

    Raises:
        BrokerError: it cannot.
    """
    _check_name("exchange", exchange, _LONGEST_EXCHANGE)


def check_queue_name(queue: str) -> None:
    """See whether the client can write a queue's name.

    Raises:
        BrokerError: it cannot.
    """
    _check_name("queue", queue, _LONGEST_QUEUE)


def _check_name(what: str, name: str, longest: int) -> None:
    # RabbitMQ takes any text. The client refuses the rest in the middle of a batch, and that ended all of it.
    if len(name) > longest or not _NAME.fullmatch(name):
        raise BrokerError(
            f"the client cannot name the {what} {name!r}, though RabbitMQ can: it takes up to {longest} letters and "
            "digits of ASCII, spaces and - _ . : @ # , / +. Choose another name, or bind another one to it"
        )


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came out of a queue, as sagas name it.

    Attributes:
        topic: as the saga that asked for it has written it.
        canonical: the same however it was written: what identities are made of.
        known: whether a saga of this process has asked for it.
        exactly: whether the topic tells where it was published.
    """

    topic: str
    canonical: str
    known: bool
    exactly: bool


@dataclass(frozen=True, slots=True)
class Routes:
    """The topics of a subscription, by queue.

    Attributes:
        queue: the service's own.
        bound: topics whose messages come into it, and the routes that bind it.
        others: queues of single topics, and these topics.
        default_exchange: the exchange of topics without one.
    """

    queue: str
    bound: dict[str, Route]
    others: dict[str, str]
    default_exchange: str

    @property
    def queues(self) -> list[str]:
        """All queues to consume from."""
        own = [self.queue] if self.bound else []
        return own + [queue for queue in self.others if queue not in own]

    def topic(self, queue: str, arrived: Route) -> Arrival:
        """Return the topic of what came out of a queue.

        What came by wildcards has the topic on which it was published. So has what nobody here has asked for: another
        process of the service may have, and the home knows.
        """
        published = topic_of(arrived, self.default_exchange)
        if queue == self.queue:
            for topic, one in self.bound.items():
                if one.matches(arrived):
                    return Arrival(published if one.is_pattern else topic, published, known=True, exactly=True)
        own = self.others.get(queue)
        return Arrival(own or published, own or published, known=own is not None, exactly=own is None)


def routes(queue: str, topics: Sequence[str], default_exchange: str, queues: dict[str, str]) -> Routes:
    """Return the routes of a subscription.

    Args:
        queue: the service's own.
        topics: all that it wants.
        default_exchange: the exchange of topics without one.
        queues: which topics have a queue of their own.

    Raises:
        BrokerError: two topics cannot be told apart when their messages arrive, or the client cannot write a name.
    """
    bound: dict[str, Route] = {}
    others: dict[str, str] = {}
    for topic in topics:
        one = route(topic, default_exchange)
        own = queues.get(topic, one.key if one.is_queue and one.key != queue else None)
        if own is None:
            for other, there in bound.items():
                if one.exchange == there.exchange and _meet(one, there):
                    raise BrokerError(
                        f"topics {other!r} and {topic!r} overlap: a queue gets a message once, so that only one "
                        "of them would see it. Give one a queue (setting queue.<topic>) or a service of its own"
                    )
            bound[topic] = one
        elif own in others:
            raise BrokerError(
                f"topics {others[own]!r} and {topic!r} have the same queue {own!r}: their messages cannot be told apart"
            )
        else:
            others[own] = topic
    found = Routes(queue, bound, others, default_exchange)
    for one in bound.values():
        check_exchange_name(one.exchange)
    for name in found.queues:
        check_queue_name(name)
    return found


def _meet(one: Route, other: Route) -> bool:
    if not one.is_pattern and not other.is_pattern:
        return one.key == other.key
    return _overlap(one.key.split("."), other.key.split("."), 0, 0)


def _overlap(one: list[str], other: list[str], i: int, j: int) -> bool:
    """Tell whether there is a key that both match."""
    if i < len(one) and one[i] == _ANY:
        return _overlap(one, other, i + 1, j) or (j < len(other) and _overlap(one, other, i, j + 1))
    if j < len(other) and other[j] == _ANY:
        return _overlap(one, other, i, j + 1) or (i < len(one) and _overlap(one, other, i + 1, j))
    if i == len(one) or j == len(other):
        return i == len(one) and j == len(other)
    return (one[i] == other[j] or _ONE in (one[i], other[j])) and _overlap(one, other, i + 1, j + 1)
