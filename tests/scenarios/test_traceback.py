"""What is printed of a failure that went through three services: one traceback, root cause first."""

import inspect
import re
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from scoop_outbox import DistributedError, Scoop, Scope
from tests.scenarios.shop import LONG

HERE = "tests/scenarios/test_traceback.py"


class OutOfPallets(Exception):
    """A failure of the warehouse's business."""


class Broken(Exception):
    """Another one."""


# The warehouse, where it happens.


def look_for_pallet(sku: str) -> None:
    pallets: dict[str, int] = {}
    try:
        pallets[sku]
    except KeyError as missing:
        raise OutOfPallets(f"no pallet holds {sku}") from missing


async def pick_async(scope: Scope, message: Any) -> None:
    look_for_pallet(message.payload["sku"])


def pick_blocking(scope: Scope, message: Any) -> None:
    look_for_pallet(message.payload["sku"])


async def weigh_async(scope: Scope, message: Any) -> None:
    raise Broken("the scales are broken")


def weigh_blocking(scope: Scope, message: Any) -> None:
    raise Broken("the scales are broken")


# The stock, in the middle.


async def gives_up_async(scope: Scope, message: Any, error: Exception) -> None:
    raise Broken("cannot reserve") from error


def gives_up_blocking(scope: Scope, message: Any, error: Exception) -> None:
    raise Broken("cannot reserve") from error


async def reserve_async(scope: Scope, message: Any) -> None:
    scope.launch("warehouse.pick", message.payload)


def reserve_blocking(scope: Scope, message: Any) -> None:
    scope.launch("warehouse.pick", message.payload)


# The orders, where it began.


async def place_async(scope: Scope, message: Any) -> None:
    scope.launch("stock.reserve", {"sku": message.payload["sku"]})


def place_blocking(scope: Scope, message: Any) -> None:
    scope.launch("stock.reserve", {"sku": message.payload["sku"]})


async def place_two_async(scope: Scope, message: Any) -> None:
    scope.launch("warehouse.pick", {"sku": message.payload["sku"]})
    scope.launch("warehouse.weigh", {})


def place_two_blocking(scope: Scope, message: Any) -> None:
    scope.launch("warehouse.pick", {"sku": message.payload["sku"]})
    scope.launch("warehouse.weigh", {})


def line_of(function: Callable[..., Any], text: str) -> int:
    """The number of the line of a function that begins with a text."""
    lines, first = inspect.getsourcelines(function)
    (found,) = [number for number, line in enumerate(lines, first) if line.strip().startswith(text)]
    return found


def printed(error: BaseException) -> str:
    """What the interpreter prints of an exception: without the ids of workers and the frames around groups."""
    text = re.sub(r"\[\[?([\w-]+)\[[0-9a-f-]{36}\]\]", r"[\1[...]]", "".join(traceback.format_exception(error)))
    return re.sub(r"(?m)^ *[|+](?:-+ \d+ -+| )?", "", text)


def recorded_by(saga: str) -> str:
    """How a line says which saga recorded a failure, without the worker's id."""
    return f"[{saga}[...]]"


def entry(function: Callable[..., Any], text: str, file: str = HERE) -> str:
    """How a traceback shows a line of a function of this file: as failures call it, or as the interpreter does."""
    number = line_of(function, text)
    source = inspect.getsource(function).splitlines()[number - inspect.getsourcelines(function)[1]].strip()
    return f'  File "{file}", line {number}, in {function.__qualname__}\n    {source}\n'


def launched_at(function: Callable[..., Any], text: str) -> str:
    """How a note shows where a message was launched."""
    return f"launched at {HERE}:{line_of(function, text)} in {function.__qualname__}"


@pytest.fixture
def services(database_url: str) -> tuple[Scoop, Scoop, Scoop]:
    """Three services on one database."""
    return (
        Scoop("orders", database=database_url),
        Scoop("stock", database=database_url),
        Scoop("warehouse", database=database_url),
    )


def places(text: str, *parts: str) -> list[int]:
    """Where each part begins, which has to be exactly once in a text."""
    for part in parts:
        assert text.count(part) == 1, f"{part!r} is there {text.count(part)} times:\n{text}"
    return [text.index(part) for part in parts]


async def launch_and_wait(*services: Scoop) -> DistributedError:
    """Launch an order at the first service while all run side by side, and return how it failed."""
    async with AsyncExitStack() as stack:
        for service in services:
            await stack.enter_async_context(service.running())
        handle = await services[0].launch("orders", {"sku": "bicycle"})
        with pytest.raises(DistributedError) as caught:
            await handle.wait(LONG)
    return caught.value


@pytest.mark.parametrize(
    "place, reserve, pick",
    [(place_async, reserve_blocking, pick_async), (place_blocking, reserve_async, pick_blocking)],
    ids=["async-blocking-async", "blocking-async-blocking"],
)
async def test_promise_7_one_traceback_across_three_services(
    services: tuple[Scoop, Scoop, Scoop], place: Any, reserve: Any, pick: Any
) -> None:
    orders, stock, warehouse = services
    orders.saga("place-order", on="orders").add_step("place", place)
    stock.saga("reserve", on="stock.reserve").add_step("reserve", reserve)
    warehouse.saga("pick", on="warehouse.pick").add_step("pick", pick)

    error = await launch_and_wait(orders, stock, warehouse)

    text = printed(error)
    found = places(
        text,
        entry(look_for_pallet, "pallets[sku]"),
        f"{recorded_by('pick')} KeyError: 'bicycle'\n",
        entry(pick, "look_for_pallet(") + entry(look_for_pallet, "raise OutOfPallets("),
        f"{recorded_by('pick')} {__name__}.OutOfPallets: no pallet holds bicycle\n",
        entry(reserve, "scope.launch("),
        f"{recorded_by('reserve')} ChildRolledBack: Child failure occurred while suspended in step [reserve]\n",
        entry(launch_and_wait, "await handle.wait(", __file__),
        entry(place, "scope.launch("),
        f"{recorded_by('place-order')} ChildRolledBack: Child failure occurred while suspended in step [place]\n",
        launched_at(launch_and_wait, "handle = await services[0].launch("),
    )
    # Root cause first, and nothing but what the users wrote, up to the place where the failure was waited for.
    assert found == sorted(found)
    assert text.count("The above exception was the direct cause of the following exception:") == 3
    assert set(re.findall(r'File "([^"]+)"', text[: found[6]])) == {HERE}


@pytest.mark.parametrize("colour", ["async", "blocking"])
async def test_promise_7_what_a_handler_raises_instead_shows_what_it_wraps(
    services: tuple[Scoop, Scoop, Scoop], colour: str
) -> None:
    orders, stock, warehouse = services
    gives_up = gives_up_async if colour == "async" else gives_up_blocking
    orders.saga("place-order", on="orders").add_step("place", place_async)
    stock.saga("reserve", on="stock.reserve").add_step("reserve", reserve_blocking, on_child_failure=gives_up)
    warehouse.saga("pick", on="warehouse.pick").add_step("pick", pick_async)

    error = await launch_and_wait(orders, stock, warehouse)

    text = printed(error)
    found = places(
        text,
        entry(look_for_pallet, "pallets[sku]"),
        entry(pick_async, "look_for_pallet(") + entry(look_for_pallet, "raise OutOfPallets("),
        entry(reserve_blocking, "scope.launch("),
        f"{recorded_by('reserve')} ChildRolledBack: Child failure occurred while suspended in step [reserve]\n",
        entry(gives_up, "raise Broken("),
        f"{recorded_by('reserve')} {__name__}.Broken: cannot reserve\n",
        entry(place_async, "scope.launch("),
        f"{recorded_by('place-order')} ChildRolledBack: Child failure occurred while suspended in step [place]\n",
    )
    assert found == sorted(found)
    assert text.count("The above exception was the direct cause of the following exception:") == 4


async def test_promise_7_a_caller_may_wrap_what_it_waited_for(services: tuple[Scoop, Scoop, Scoop]) -> None:
    orders, stock, warehouse = services
    orders.saga("place-order", on="orders").add_step("place", place_blocking)
    stock.saga("reserve", on="stock.reserve").add_step("reserve", reserve_async)
    warehouse.saga("pick", on="warehouse.pick").add_step("pick", pick_blocking)

    async def check_out() -> None:
        try:
            raise await launch_and_wait(orders, stock, warehouse)
        except DistributedError as error:
            raise Broken("no order today") from error

    with pytest.raises(Broken) as caught:
        await check_out()

    text = printed(caught.value)
    found = places(
        text,
        entry(pick_blocking, "look_for_pallet(") + entry(look_for_pallet, "raise OutOfPallets("),
        entry(reserve_async, "scope.launch("),
        entry(place_blocking, "scope.launch("),
        f"{__name__}.Broken: no order today\n",
    )
    assert found == sorted(found)


@pytest.mark.parametrize(
    "place, pick, weigh",
    [(place_two_async, pick_blocking, weigh_async), (place_two_blocking, pick_async, weigh_blocking)],
    ids=["async-blocking-async", "blocking-async-blocking"],
)
async def test_promise_25_two_failing_siblings_both_appear(
    services: tuple[Scoop, Scoop, Scoop], place: Any, pick: Any, weigh: Any
) -> None:
    orders, stock, warehouse = services
    orders.saga("place-order", on="orders").add_step("place", place)
    stock.saga("pick", on="warehouse.pick").add_step("pick", pick)
    warehouse.saga("weigh", on="warehouse.weigh").add_step("weigh", weigh)

    error = await launch_and_wait(orders, stock, warehouse)

    assert {cause.message for cause in error.causes} == {"no pallet holds bicycle", "the scales are broken"}
    text = printed(error)
    last = f"{recorded_by('place-order')} ChildRolledBack: Child failure occurred while suspended in step [place]\n"
    # Which of them failed first is for the machine to choose; each comes whole, and before what they caused.
    for of_child in (
        (
            entry(look_for_pallet, "pallets[sku]"),
            f"{recorded_by('pick')} KeyError: 'bicycle'\n",
            entry(pick, "look_for_pallet(") + entry(look_for_pallet, "raise OutOfPallets("),
            f"{recorded_by('pick')} {__name__}.OutOfPallets: no pallet holds bicycle\n",
            launched_at(place, 'scope.launch("warehouse.pick"'),
        ),
        (
            entry(weigh, "raise Broken("),
            f"{recorded_by('weigh')} {__name__}.Broken: the scales are broken\n",
            launched_at(place, 'scope.launch("warehouse.weigh"'),
        ),
    ):
        found = places(text, *of_child, last)
        assert found == sorted(found)
    assert "ExceptionGroup: 2 children failed (2 sub-exceptions)" in text
