"""Topics, exchanges and routing keys."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scoop_outbox_rabbitmq.route import Arrival, Route, names, pattern, route, routes, topic_of

from scoop_outbox.errors import BrokerError


@pytest.mark.parametrize(
    "topic, exchange, key",
    [
        ("orders.created", "main", "orders.created"),
        ("shop/orders.created", "shop", "orders.created"),
        ("shop%2Feu/a/b", "shop/eu", "a/b"),
        ("100%25/x", "100%", "x"),
        ("shop/", "shop", ""),
        ("/billing", "", "billing"),
    ],
)
def test_a_topic_is_an_exchange_and_a_routing_key(topic: str, exchange: str, key: str) -> None:
    found = route(topic, "main")

    assert found == Route(exchange, key)
    assert route(str(found), "other") == found


def test_an_exchange_that_is_no_text_is_refused() -> None:
    with pytest.raises(BrokerError, match="no text"):
        route("%ff/x", "main")


@pytest.mark.parametrize("exchange", ["caf\u00e9", "x" * 128, "a;b"])
def test_an_exchange_that_the_client_cannot_name_is_refused(exchange: str) -> None:
    for topic, default in ((f"{exchange}/x", "main"), ("x", exchange)):
        with pytest.raises(BrokerError, match="the client cannot name"):
            routes("q", (topic,), default, {})


def test_a_queue_that_the_client_cannot_name_is_refused() -> None:
    for group, topics, queues in (
        ("caf\u00e9", ("a",), {}),
        ("q", ("a",), {"a": "x" * 256}),
        ("q", ("/caf\u00e9",), {}),
    ):
        with pytest.raises(BrokerError, match="the client cannot name"):
            routes(group, topics, "amq.topic", queues)
    # Nobody asks for this one.
    assert routes("caf\u00e9", ("a",), "amq.topic", {"a": "theirs"}).queues == ["theirs"]


@pytest.mark.parametrize(
    "pattern, key, expected",
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#", "", True),
        ("#", "a.b", True),
        ("*.b.#.d", "a.b.d", True),
        ("*.b.#.d", "a.b.c.c.d", True),
        ("*.b.#.d", "b.d", False),
        ("a*", "ab", False),
    ],
)
def test_a_pattern_matches_as_in_a_topic_exchange(pattern: str, key: str, expected: bool) -> None:
    assert Route("x", pattern).matches(Route("x", key)) is expected
    assert not Route("x", pattern).matches(Route("y", key))


@pytest.mark.parametrize(
    "topic, own, strange",
    [
        ("a.*", ["a.b", "a.", "amq.topic/a.b"], ["a", "a.b.c", "ab", "x/a.b", "amq.topic/a", "a.b/c", "xa.b"]),
        ("a.#", ["a", "a.b.c", "amq.topic/a.b/c"], ["ab", "b.a", "a/b", "amq.topic/b"]),
        ("#.a", ["a", "b.a", "b.c.a"], ["ba", "a.b"]),
        ("#", ["a", "a.b", "amq.topic/", "amq.topic/a.b"], ["x/a", "/a"]),
        ("shop%2Feu/*", ["shop%2Feu/a", "shop%2Feu/a/b"], ["shop/eu/a", "a", "shop%2Feu/a.b"]),
        ("amq.topic/a/b.*", ["amq.topic/a/b.c"], ["a/b.c"]),
    ],
)
def test_a_pattern_stands_for_topics(topic: str, own: list[str], strange: list[str]) -> None:
    expression = pattern(route(topic, "amq.topic"), "amq.topic")

    assert expression is not None
    assert [one for one in (*own, *strange) if re.search(expression, one)] == own


@pytest.mark.parametrize(
    "topic, written",
    [
        ("a.b", ["amq.topic/a.b", "a.b"]),
        ("amq.topic/a.b", ["amq.topic/a.b", "a.b"]),
        ("a*", ["amq.topic/a*", "a*"]),
        ("my%20shop/a", ["my%20shop/a", "my shop/a"]),
        ("my shop/a", ["my%20shop/a", "my shop/a"]),
        ("y/a.b", ["y/a.b"]),
        ("y/a*", ["y/a*"]),
        ("amq.topic/a/b", ["amq.topic/a/b"]),
        ("amq.topic/", ["amq.topic/"]),
    ],
)
def test_a_topic_without_wildcards_has_names_and_no_pattern(topic: str, written: list[str]) -> None:
    assert names(route(topic, "amq.topic"), "amq.topic") == written
    assert pattern(route(topic, "amq.topic"), "amq.topic") is None


@pytest.mark.parametrize("topic", ["/a.b", "/a.*", "a.*", "#"])
def test_a_queue_and_a_topic_with_wildcards_have_no_names(topic: str) -> None:
    assert names(route(topic, "amq.topic"), "amq.topic") == []


_WORDS = st.lists(st.sampled_from(["a", "b", "", "*", "#", "a*", "-", "a/b"]), max_size=5).map(".".join)


def words_of(key: str) -> list[str]:
    return key.split(".") if key else []


def gets(pattern: list[str], words: list[str]) -> bool:
    """As RabbitMQ's topic exchanges are documented."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return gets(pattern[1:], words) or (bool(words) and gets(pattern, words[1:]))
    return bool(words) and pattern[0] in ("*", words[0]) and gets(pattern[1:], words[1:])


@example(key="*", arrived="", exchange="x", default="x")
@given(key=_WORDS, arrived=_WORDS, exchange=st.sampled_from(["x", "y/z"]), default=st.sampled_from(["x", "y/z"]))
def test_what_a_binding_gets_is_what_its_pattern_stands_for(
    key: str, arrived: str, exchange: str, default: str
) -> None:
    binding, published = Route(exchange, key), Route(exchange, arrived)
    expression = pattern(binding, default)
    topic = topic_of(published, default)

    assert route(topic, default) == published
    if expression is not None:
        for form in {topic, str(published)}:
            assert (re.fullmatch(expression, form) is not None) is gets(key.split("."), words_of(arrived)), form
    assert binding.matches(published) is (gets(key.split("."), words_of(arrived)) or key == arrived)


@pytest.mark.parametrize(
    "topics",
    [("a.*", "a.b"), ("a.b", "#"), ("a.*", "*.b"), ("a.#", "#.b"), ("a", "amq.topic/a")],
)
def test_topics_that_overlap_are_refused(topics: tuple[str, str]) -> None:
    with pytest.raises(BrokerError, match="overlap"):
        routes("q", topics, "amq.topic", {})


def test_topics_that_do_not_overlap_are_told_apart() -> None:
    found = routes("q", ("a.*", "b.*", "x/a.b", "a.b.c"), "amq.topic", {})

    arrived = [Route("amq.topic", "a.z"), Route("amq.topic", "b.z"), Route("x", "a.b"), Route("amq.topic", "a.b.c")]
    assert [found.topic("q", one).topic for one in arrived] == ["a.z", "b.z", "x/a.b", "a.b.c"]
    assert all(found.topic("q", one).known for one in arrived)


@pytest.mark.parametrize(
    "arrived, topic",
    [
        (Route("amq.topic", "c"), "c"),
        (Route("x", "a"), "x/a"),
        (Route("amq.topic", "a/b"), "amq.topic/a/b"),
        (Route("amq.topic", ""), "amq.topic/"),
        (Route("", "q"), "/q"),
        (Route("shop/eu", "a"), "shop%2Feu/a"),
    ],
)
def test_what_nobody_here_has_asked_for_has_the_topic_on_which_it_was_published(arrived: Route, topic: str) -> None:
    found = routes("q", ("a.*", "x/a.b"), "amq.topic", {})

    assert found.topic("q", arrived) == Arrival(topic, topic, known=False, exactly=True)


@pytest.mark.parametrize("written", ["a.b", "amq.topic/a.b"])
def test_a_topic_is_named_as_its_saga_has_written_it_and_known_by_one_name(written: str) -> None:
    found = routes("q", (written,), "amq.topic", {})

    assert found.topic("q", Route("amq.topic", "a.b")) == Arrival(written, "a.b", known=True, exactly=True)


def test_a_topic_may_have_a_queue_of_its_own() -> None:
    found = routes("q", ("a", "b", "/c", "/q"), "amq.topic", {"b": "theirs"})

    assert sorted(found.queues) == ["c", "q", "theirs"]
    assert found.topic("theirs", Route("whatever", "comes")) == Arrival("b", "b", known=True, exactly=False)
    assert found.topic("c", Route("", "c")) == Arrival("/c", "/c", known=True, exactly=False)
    assert found.topic("q", Route("", "q")) == Arrival("/q", "/q", known=True, exactly=True)


def test_two_topics_cannot_have_one_queue() -> None:
    with pytest.raises(BrokerError, match="same queue"):
        routes("q", ("a", "b"), "amq.topic", {"a": "theirs", "b": "theirs"})
