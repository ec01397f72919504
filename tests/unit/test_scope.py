"""The scope without a database: launching is appending to a list."""

import json
import uuid
from typing import Any

import pytest

from scoop_outbox import Context, DefinitionError, PayloadError, Result, Scope
from scoop_outbox.wire.limits import Limits
from scoop_outbox.wire.validation import CONTENT_TYPE_LIMIT, KEY_LIMIT

RUN = uuid.UUID(int=1)


def scope(context: str | None = None) -> Scope:
    return Scope(
        run_id=RUN, saga="shop", step="first", lineage=[RUN], context=Context(context),
        results=[Result("child", RUN, 1)], iteration=2, attempt=1, idempotency_key="key",
    )  # fmt: skip


def test_a_launch_is_kept_until_the_step_ends() -> None:
    one = scope('{"who":"me"}')
    message_id = one.launch("topic", {"a": 1}, key="k", context={"what": 2}, headers={"h": "v"})
    (emission,) = one.emissions
    assert emission.message_id == message_id
    assert (emission.topic, emission.key, emission.body, emission.headers) == ("topic", "k", b'{"a":1}', {"h": "v"})
    assert emission.awaited is True
    assert json.loads(emission.context or "") == {"who": "me", "what": 2}
    assert emission.launched_at.function_name == test_a_launch_is_kept_until_the_step_ends.__qualname__


def test_a_launch_may_say_what_its_body_is() -> None:
    one = scope()
    one.launch("topic", b"Avro", headers={"Content-Type": "application/avro", "h": "v"})
    one.launch("topic", b"bytes", headers={"h": "v"})
    assert [(emission.content_type, emission.headers) for emission in one.emissions] == [
        ("application/avro", {"h": "v"}),
        ("application/octet-stream", {"h": "v"}),
    ]


def test_a_launch_sees_the_context_as_it_is_now() -> None:
    one = scope()
    one.launch("topic", 1)
    one.context["a"] = 1
    one.launch("topic", 2)
    assert [emission.context for emission in one.emissions] == [None, '{"a":1}']


def test_a_context_that_was_inherited_is_not_measured_by_a_lower_limit() -> None:
    inherited = json.dumps({"tenant": "x" * 200})

    def low(*, handles: bool = False) -> Scope:
        return Scope(
            run_id=RUN, saga="shop", step="first", lineage=[RUN], context=Context(inherited), results=[],
            iteration=0, attempt=0, idempotency_key="key", limits=Limits(max_body=100), handles=handles,
        )  # fmt: skip

    looked = low()
    assert looked.context["tenant"]
    looked.launch("topic", 1)
    looked.launch("topic", 1, context={"more": 1})
    assert json.loads(looked.emissions[1].context or "") == {"tenant": "x" * 200, "more": 1}
    assert json.loads(looked.left_context() or "") == json.loads(inherited)
    with pytest.raises(PayloadError, match=r"the context takes .* max_body is 100"):
        looked.launch("topic", 1, context={"more": "x" * 100})

    made_less = low()
    made_less.context["tenant"] = "x" * 150
    assert made_less.left_context()

    made_more = low()
    made_more.context["more"] = 1
    with pytest.raises(PayloadError, match=r"the context takes .* max_body is 100"):
        made_more.left_context()
    with pytest.raises(PayloadError, match=r"the context takes .* max_body is 100"):
        made_more.launch("topic", 1)

    rolls_back = low(handles=True)
    rolls_back.context["undone"] = True
    rolls_back.launch("topic", 1)
    assert json.loads(rolls_back.left_context() or "")["undone"] is True


def test_hp_13_a_launch_on_the_global_scope_takes_nothing_along() -> None:
    one = scope('{"who":"me"}')
    one.launch_on_global_scope("topic", 1)
    one.launch_on_global_scope("topic", 1, context={"only": "this"})
    assert [emission.awaited for emission in one.emissions] == [False, False]
    assert [emission.context for emission in one.emissions] == [None, '{"only":"this"}']
    place = one.emissions[0].launched_at.function_name
    assert place == test_hp_13_a_launch_on_the_global_scope_takes_nothing_along.__qualname__


@pytest.mark.parametrize(
    "options, says",
    [
        ({"payload": object()}, "the payload for topic 'topic' cannot be encoded"),
        ({"payload": {"a": {1}}}, "the payload for topic 'topic' cannot be encoded"),
        ({"payload": float("nan")}, "the payload for topic 'topic' cannot be encoded"),
        ({"key": 7}, "a message key is text"),
        ({"key": b"k" * (KEY_LIMIT + 1)}, "a message key is text"),
        ({"key": "a\0b"}, "a message key is text"),
        ({"key": "\ud800"}, "a message key is text"),
        ({"key": "x" * (KEY_LIMIT + 1)}, "a message key is text"),
        ({"headers": {"a": 1}}, "header 'a': names and values are text"),
        ({"headers": {1: "a"}}, "header 1: names and values are text"),
        ({"headers": {"a": "\ud800"}}, "header 'a': names and values are text"),
        ({"headers": {"Scoop-Lineage": "x"}}, "are ours"),
        ({"headers": {"content-type": "a\0"}}, "a content type has at most 255 bytes"),
        ({"headers": {"content-type": "x" * (CONTENT_TYPE_LIMIT + 1)}}, "a content type has at most 255 bytes"),
        ({"context": {"a": object()}}, "the context cannot be encoded"),
    ],
)
@pytest.mark.parametrize("way", ["launch", "launch_on_global_scope"])
def test_what_cannot_be_launched_leaves_nothing(way: str, options: dict[str, Any], says: str) -> None:
    one = scope()
    with pytest.raises(PayloadError, match=says):
        getattr(one, way)("topic", **{"payload": 1, **options})
    assert one.emissions == []


@pytest.mark.parametrize("topic", ["", "a\0", "x" * 256, "\ud800", 7, None])
def test_a_topic_that_cannot_be_named_is_refused(topic: Any) -> None:
    one = scope()
    with pytest.raises(DefinitionError, match="topic name"):
        one.launch(topic, 1)
    assert one.emissions == []


@pytest.mark.parametrize("key", ["", "o'clock", "🛒", "x" * KEY_LIMIT, "a\nb"])
def test_keys_are_arbitrary_text(key: str) -> None:
    one = scope()
    one.launch("topic", 1, key=key)
    assert one.emissions[0].key == key


def test_rv_07_the_last_result_counts() -> None:
    assert scope().result is None
    one = scope()
    one.set_result({"a": 1})
    one.set_result(None)
    assert one.result == "null"
    with pytest.raises(PayloadError, match="the result cannot be encoded"):
        one.set_result(object())
    assert one.result == "null"


def test_what_a_callback_is_told() -> None:
    one = scope()
    assert (one.run_id, one.saga, one.step, one.lineage) == (RUN, "shop", "first", (RUN,))
    assert (one.iteration, one.attempt, one.idempotency_key) == (2, 1, "key")
    assert one.results == (Result("child", RUN, 1),)


@pytest.mark.parametrize("name", ["session", "connection"])
def test_a_scope_without_a_database_says_so(name: str) -> None:
    with pytest.raises(RuntimeError, match="not bound to a database"):
        getattr(scope(), name)
