"""The cooperation context."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoop_outbox import Context, PayloadError
from scoop_outbox.context import merge

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
contexts = st.dictionaries(st.text(), values, max_size=4)


def dumped(content: dict[str, object]) -> str | None:
    context = Context()
    context.update(content)
    return context.dumps()


@given(contexts)
def test_cx_05_what_is_put_in_comes_out(content: dict[str, object]) -> None:
    text = dumped(content)
    assert dict(Context(text)) == content
    assert text is None or text.isascii()
    assert text is None or "\0" not in text


@given(contexts)
def test_a_context_that_nobody_looks_at_is_passed_on_as_it_is(content: dict[str, object]) -> None:
    text = json.dumps(content, indent=1)
    context = Context(text)
    assert context.dumps() is text


@given(contexts, contexts)
def test_promise_29_the_parent_wins_when_contexts_are_merged(own: dict[str, object], above: dict[str, object]) -> None:
    assert dict(Context(merge(dumped(own), dumped(above)))) == {**own, **above}


@given(contexts, contexts)
def test_what_a_launch_adds_is_on_top_and_stays_there(own: dict[str, object], more: dict[str, object]) -> None:
    names = {f"k{number}": value for number, value in enumerate(more.values())}
    context = Context(dumped(own))
    assert dict(Context(context.dumps(**names))) == {**own, **names}
    assert dict(context) == own


def test_a_context_is_a_mapping() -> None:
    context = Context('{"a": 1, "b": [2]}')
    assert (len(context), list(context), context["b"], "c" in context) == (2, ["a", "b"], [2], False)
    del context["a"]
    context["c"] = {"d": None}
    assert context == {"b": [2], "c": {"d": None}}
    with pytest.raises(KeyError):
        context["a"]
    context.clear()
    assert context.dumps() is None


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", float("nan"), float("inf"), lambda: None])
def test_a_value_that_cannot_be_stored_is_refused_when_the_step_ends(value: object) -> None:
    context = Context()
    context["x"] = value
    with pytest.raises(PayloadError, match="the context cannot be encoded"):
        context.dumps()


@pytest.mark.parametrize("key", [1, None, ("a",), b"a"])
def test_keys_are_text(key: object) -> None:
    with pytest.raises(PayloadError, match="context key is text"):
        Context()[key] = 1  # type: ignore[index]  # that is the point


def test_values_stay_out_of_logs() -> None:
    assert repr(Context('{"b": "secret", "a": 1}')) == "Context(a, b)"
