"""Declaring sagas: what can be said, and what is refused before anything runs."""

import asyncio
import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from scoop_outbox import DefinitionError, GoTo, Message, Retry, Saga, Scoop, Scope, Step, Topic
from scoop_outbox.app import service_of
from scoop_outbox.step import is_async
from tests.unit.test_message import Order


def plain(scope: Scope, message: Message) -> None: ...


async def coroutine(scope: Scope, message: Message) -> None: ...


def failed(scope: Scope, message: Message, error: Exception) -> None: ...


@pytest.fixture
def saga() -> Saga:
    return Saga("place-order", "orders")


def test_steps_are_declared_in_order(saga: Saga) -> None:
    @saga.step
    async def first(scope: Scope, message: Message) -> None: ...

    @saga.step("with a name", retry=Retry(attempts=2))
    def second(scope: Scope, message: Message) -> None: ...

    @saga.step(compensate_retry=Retry(attempts=9))
    def third(scope: Scope, message: Message) -> None: ...

    saga.add_step("fourth", functools.partial(plain), compensate=failed, on_child_failure=failed)
    assert [step.name for step in saga.steps] == ["first", "with a name", "third", "fourth"]
    assert saga.first == "first"
    assert [saga.after(step.name) for step in saga.steps] == ["with a name", "third", "fourth", None]
    assert saga.get("with a name") is second
    assert saga.get("second") is None
    assert isinstance(second, Step)
    assert second.retry.attempts == 2
    assert third.compensate_retry.attempts == 9
    saga.check()


def test_what_belongs_to_a_step_is_declared_on_it(saga: Saga) -> None:
    @saga.step
    def first(scope: Any, message: Any) -> Any:
        return "called"

    @first.compensate
    async def undo(scope: Scope, message: Message, error: Exception) -> None: ...

    @first.on_child_failure
    def handle(scope: Scope, message: Message, error: Exception) -> None: ...

    @first.on_child_rollback_failure
    def swallow(scope: Scope, message: Message, error: Exception) -> None: ...

    assert first.callbacks == (first.invoke, undo, handle, swallow)
    assert first(None, None) == "called"
    assert GoTo(first).name == GoTo("first").name == "first"


@pytest.mark.parametrize("what", ["compensate", "on_child_failure", "on_child_rollback_failure"])
def test_a_callback_is_declared_once(saga: Saga, what: str) -> None:
    step = saga.add_step("first", plain)
    getattr(step, what)(failed)
    with pytest.raises(DefinitionError, match="declared twice"):
        getattr(step, what)(failed)


def generator(scope: Scope, message: Message) -> Iterator[None]:
    yield


async def generators(scope: Scope, message: Message) -> AsyncIterator[None]:
    yield


WRONG: list[tuple[Any, str]] = [
    (generator, "generator function"),
    (generators, "generator function"),
    (lambda: None, r"is called with \(scope, message\), but takes"),
    (lambda scope: None, r"is called with \(scope, message\), but takes"),
    (lambda scope, message, more: None, r"is called with \(scope, message\), but takes"),
    (lambda scope, message, *, needed: None, r"is called with \(scope, message\), but takes"),
    (None, "cannot be called"),
    ("plain", "cannot be called"),
]


def test_a_policy_of_retries_that_is_none_is_refused(saga: Saga) -> None:
    with pytest.raises(DefinitionError, match=r"retry=2 is no policy; write Retry\(attempts=...\)"):
        saga.add_step("0", lambda scope, message: None, retry=2)  # type: ignore[arg-type]


def test_an_option_that_a_step_does_not_have_is_refused(saga: Saga) -> None:
    with pytest.raises(DefinitionError, match="option 'shild' of a step is unknown; there are shield"):
        saga.add_step("0", lambda scope, message: None, shild=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("callback, says", WRONG)
def test_a_callback_that_could_not_be_called_is_refused(saga: Saga, callback: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match=says) as error:
        saga.add_step("first", callback)
    assert "step 'first' of saga 'place-order'" in str(error.value)
    assert saga.steps == ()


@pytest.mark.parametrize("what", ["compensate", "on_child_failure", "on_child_rollback_failure"])
@pytest.mark.parametrize("callback", [plain, generator, None])
def test_callbacks_with_an_error_take_three_arguments(saga: Saga, what: str, callback: Any) -> None:
    step = saga.add_step("first", plain)
    with pytest.raises(DefinitionError, match=r"\(scope, message, error\)|generator"):
        getattr(step, what)(callback)
    assert step.callbacks == (plain,)


def test_a_step_needs_a_name(saga: Saga) -> None:
    with pytest.raises(DefinitionError, match=r"give the step one, as in @saga.step\('name'\)"):
        saga.step(lambda scope, message: None)
    assert saga.steps == ()


@pytest.mark.parametrize("name", ["", "a\0", "x" * 256, "\ud800", 7])
def test_names_are_checked(name: Any) -> None:
    app = Scoop("shop")
    with pytest.raises(DefinitionError, match="saga name"):
        app.saga(name, on="orders")
    with pytest.raises(DefinitionError, match="topic name"):
        app.saga("fine", on=name)
    with pytest.raises(DefinitionError, match="service name"):
        Scoop(name)
    with pytest.raises(DefinitionError, match="step name"):
        Saga("fine", "orders").add_step(name, plain)
    assert app.sagas == {}


def test_names_are_taken_once() -> None:
    app = Scoop("shop")
    saga = app.saga("place-order", on="orders")
    with pytest.raises(DefinitionError, match=r"'shop' has a saga 'place-order' already \(on 'orders'\)"):
        app.saga("place-order", on="other")
    saga.add_step("first", plain)
    with pytest.raises(DefinitionError, match="'place-order' has a step 'first' already"):
        saga.add_step("first", coroutine)
    assert [step.invoke for step in saga.steps] == [plain]
    assert app.sagas == {"place-order": saga}


def test_hp_15_a_saga_without_steps_cannot_run() -> None:
    app = Scoop("shop")
    app.saga("place-order", on="orders")
    with pytest.raises(DefinitionError, match="saga 'place-order' has no steps: declare one"):
        service_of(app).check()


def test_a_typed_topic_is_kept(saga: Saga) -> None:
    topic = Topic("orders", Order)
    assert Saga("typed", topic).schema is topic
    assert Saga("typed", topic).topic == "orders"
    assert saga.schema is None


class Callable:
    async def __call__(self, scope: Scope, message: Message) -> None: ...

    async def method(self, scope: Scope, message: Message) -> None: ...


@pytest.mark.parametrize(
    "callback, colour",
    [
        (plain, False),
        (coroutine, True),
        (functools.partial(plain), False),
        (functools.partial(functools.partial(coroutine)), True),
        (Callable(), True),
        (Callable().method, True),
        (lambda scope, message: None, False),
    ],
)
def test_the_colour_of_a_callback(callback: Any, colour: bool) -> None:
    assert is_async(callback) is colour


def test_declaring_needs_no_loop_and_no_database(saga: Saga) -> None:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert repr(Scoop("shop")) == "<Scoop 'shop': no sagas>"
    assert repr(saga) == "<saga 'place-order' on 'orders': no steps>"
