"""The demonstration from beginning to end."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from scoop_outbox import DistributedError, Handle, ScoopError
from scoop_outbox.app import service_of
from scoop_outbox.demo import names, runner, tables
from scoop_outbox.demo.carrier import Carrier, carrier, title_of
from scoop_outbox.demo.count import read_closing_count, read_handled, read_progress
from scoop_outbox.demo.homes import Homes, control_subscriptions, homes, services
from scoop_outbox.demo.orders import place
from scoop_outbox.demo.screen import (
    WIDTH,
    ProgressDisplay,
    open_console,
    print_carried,
    print_closing_count,
    print_title,
    print_traceback,
)
from scoop_outbox.demo.trees import tree_of
from scoop_outbox.store.url import parse_url, redact_url

_CUSTOMERS = 16
_ITEMS = 2
"""How many items an order has that makes a tree which is easy to read."""
_LONGEST = 120.0
"""Seconds after which something is wrong: all orders together take about ten."""


class DemonstrationError(ScoopError):
    """The demonstration cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says.

    Attributes:
        database: a database to use; None starts one.
        broker: `kafka` or `rabbitmq`, which start one, or a broker's URL; None is the built-in one.
        orders: a file of orders, one JSON object a line; None is the one that is shipped.
        count: how many of them; None is all.
        each: whether each service has a database of its own, and is a home.
        keep: whether to leave everything running at the end, until a signal comes.
        settings: for the broker's client.
    """

    database: str | None = None
    broker: str | None = None
    orders: Path | None = None
    count: int | None = None
    each: bool = False
    keep: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Placed:
    """An order that was placed, whether it has ended, and why it failed if it did."""

    order: dict[str, Any]
    handle: Handle
    error: DistributedError | None = None
    ended: bool = False

    @property
    def id(self) -> str:
        """The order's id."""
        return str(self.order["id"])

    @property
    def root_cause(self) -> str:
        """The class of what its failure began with, without its module."""
        error = self.error
        while error is not None and error.causes:
            error = error.causes[0]
        return "" if error is None else error.type.rpartition(".")[2]


def demonstrate(options: Options) -> int:
    """Run the demonstration and return its exit code: 0, 1 if the closing count does not add up, or 128 + signal.

    Raises:
        ScoopError: it cannot run, and says why.
    """
    return asyncio.run(_until_stopped(options))


async def _until_stopped(options: Options) -> int:
    """End in order when a signal says so: what was started is stopped, and there is no traceback."""
    console = open_console()
    task = asyncio.create_task(_demonstrate(options, console))
    stopped: list[int] = []

    def stop(number: int) -> None:
        # Those who press Ctrl-C twice want it to end, which it already does: a second time would leave things behind.
        if not stopped:
            stopped.append(number)
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except (asyncio.CancelledError, Exception):
        if not stopped:
            raise
        console.print("\nStopped. Nothing that was started is left.")
        return 128 + stopped[0]


async def _demonstrate(options: Options, console: Console) -> int:
    orders = read_orders(options.orders, options.count)
    # A broker that cannot be used is refused before anything has been started.
    title = title_of(options.broker, options.settings)
    _check_homes(options, title)
    async with AsyncExitStack() as stack:
        console.print(
            "[bold]scoop_outbox: orders that go through four services, and come back when one of them fails[/]"
        )
        through = None if title is None else await _broker(options, title, stack, console)
        url = await _database(options, stack, console)
        broker = None if through is None else through.url
        settings = {} if through is None else options.settings
        home = await stack.enter_async_context(homes(url, broker, settings, each=options.each))
        relaying = "which relays what it launches itself" if options.each else "and one that relays their messages"
        console.print(f"  services   {', '.join(home.urls)}: a process each, {relaying}")
        processes = await stack.enter_async_context(runner.processes(home.urls, broker, settings))
        await home.acquainted()
        console.print(f"  orders     {len(orders)}; each has its stock reserved, is paid for, and is shipped\n")
        display = ProgressDisplay(console, len(orders), title)
        placed = await _follow(home, orders, processes, through, display)
        await _tell(home, placed, console)
        adds_up = await _add_up(home, placed, title, through, console)
        if options.keep:
            await _keep(home, processes, console, lent=options.database is not None)
        return 0 if adds_up else 1


def _check_homes(options: Options, title: str | None) -> None:
    """Refuse a database for each service where that cannot be.

    Raises:
        DemonstrationError: it cannot; what to do.
    """
    if options.each and title is None:
        raise DemonstrationError(
            "services that have a database each talk over a broker that all of them reach, and the built-in one is "
            "the database: pass --broker kafka or --broker rabbitmq (make demo HOMES=each BROKER=kafka)"
        )
    if options.each and options.database is not None:
        raise DemonstrationError(
            "the databases of --homes each are made on a Postgres that is started for them: leave --database out"
        )


async def _add_up(
    home: Homes, placed: Sequence[Placed], title: str | None, through: Carrier | None, console: Console
) -> bool:
    """Show what was counted at the broker and in the services' tables, and tell whether it adds up."""
    problems: list[str] = []
    if title is not None and through is not None:
        print_title(console, f"What {title} carried, counted there by a consumer that no service knows of")
        missing = await through.onlooker.missing(await read_handled(home.connections))
        print_carried(console, title, through.counts, through.said)
        problems += [f"message {one} was handled, but was not seen at the broker" for one in sorted(missing)]
    failed = {one.id for one in placed if one.error is not None}
    where = "the databases of all four" if home.separate else "the tables of all four"
    print_title(console, f"The closing count, taken from {where} services")
    count = await read_closing_count(home.connections, {one.id for one in placed} - failed, failed)
    count = replace(count, problems=(*count.problems, *problems))
    print_closing_count(console, count)
    return not count.problems


async def _broker(options: Options, title: str, stack: AsyncExitStack, console: Console) -> Carrier:
    broker = str(options.broker)
    named = urlsplit(broker).scheme != ""
    if not named:
        console.print(f"  broker     {title}: starting one, or finding the one that tests use")
    subscriptions = [service_of(app).subscription for app in services().values()]
    controls = control_subscriptions() if options.each else ()
    through = await stack.enter_async_context(carrier(broker, options.settings, subscriptions, controls))
    console.print(f"  broker     {title} at {through.where} carries all messages between the services", markup=False)
    created = f"{through.created}, named {names.prefix()}…"
    console.print(f"             created there: {created}", markup=False)
    if through.outlives_us:
        stack.callback(console.print, f"\nLeft at {title}, for you to delete: {created}", markup=False)
    return through


async def _database(options: Options, stack: AsyncExitStack, console: Console) -> str:
    if options.database is None:
        what = "one for each service, on a Postgres" if options.each else "a Postgres"
        console.print(f"  database   {what} of {'their' if options.each else 'its'} own, in a temporary folder")
        return await stack.enter_async_context(runner.postgres())
    console.print(f"  database   {redact_url(options.database)}, in the schema {tables.SCHEMA}")
    return options.database


async def _keep(home: Homes, processes: runner.Processes, console: Console, *, lent: bool) -> None:
    """Leave everything running until a signal comes."""
    console.print(f"\nEverything is left running until Ctrl-C. Look at it, in the schema {tables.SCHEMA}:")
    for url in dict.fromkeys(home.urls.values()):
        # Whoever lends a database knows its password, and may not want to see it on a screen.
        console.print(Text(f"  psql '{redact_url(url) if lent else url}'"), soft_wrap=True)
    while True:
        processes.check()
        await asyncio.sleep(0.5)


def read_orders(file: Path | None, count: int | None) -> list[dict[str, Any]]:
    """Read orders from a file of JSON lines, at most so many of them.

    Raises:
        DemonstrationError: the file cannot be read, or a line of it is no order; the message says which.
    """
    source = resources.files("scoop_outbox.demo") / "orders.jsonl" if file is None else file
    orders: dict[str, dict[str, Any]] = {}
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DemonstrationError(f"{source} cannot be read: {error}") from error
    for number, line in enumerate(lines[:count], 1):
        try:
            order = json.loads(line)
            order["customer"]["name"], order["card"]["last4"], order["address"]["country"]
            if order["id"] in orders or sum(item["quantity"] * item["price_cents"] for item in order["items"]) <= 0:
                raise ValueError("its id is not new, or it costs nothing")  # noqa: TRY301
        except (KeyError, TypeError, ValueError) as error:
            raise DemonstrationError(
                f"line {number} of {source} is no order ({type(error).__name__}: {error}); write it as in the file "
                "that is shipped, scoop_outbox/demo/orders.jsonl"
            ) from error
        orders[order["id"]] = order
    if not orders:
        raise DemonstrationError(f"{source} holds no orders")
    return list(orders.values())


async def _follow(
    home: Homes,
    orders: Sequence[dict[str, Any]],
    processes: runner.Processes,
    through: Carrier | None,
    display: ProgressDisplay,
) -> list[Placed]:
    """See all orders through, and show meanwhile where they stand."""
    seeing = asyncio.create_task(_see_through(home.urls["orders"], orders))
    try:
        with display:
            while True:
                done, _ = await asyncio.wait([seeing], timeout=0.1)
                processes.check()
                carried = None
                if through is not None:
                    through.onlooker.check()
                    carried = through.onlooker.total
                display.update(await read_progress(home.connections), carried, last=bool(done))
                if done:
                    return seeing.result()
    finally:
        seeing.cancel()
        await asyncio.gather(seeing, return_exceptions=True)


async def _see_through(url: str, orders: Sequence[dict[str, Any]]) -> list[Placed]:
    """Have customers place all orders, each one after the other, and wait until each has ended, however it does."""
    engine = create_async_engine(parse_url(url))
    to_be_placed = iter(orders)
    placed: list[Placed] = []

    async def customer() -> None:
        async with AsyncSession(engine) as session:
            for order in to_be_placed:
                async with session.begin():
                    handle = await place(session, order)
                one = Placed(order, handle)
                placed.append(one)
                try:
                    await handle.wait()
                except DistributedError as error:
                    one.error = error
                one.ended = True

    try:
        async with asyncio.timeout(_LONGEST), asyncio.TaskGroup() as customers:
            for _ in range(_CUSTOMERS):
                customers.create_task(customer())
    except TimeoutError:
        ended = sum(one.ended for one in placed)
        raise DemonstrationError(
            f"{ended} of {len(orders)} orders have ended after {_LONGEST:.0f} s; if the numbers above were growing, "
            "this machine is slow or busy: take fewer orders, with --count 20"
        ) from None
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        await engine.dispose()
    return placed


async def _tell(home: Homes, placed: Sequence[Placed], console: Console) -> None:
    """Show how one order went well, and how one failed as late as can be."""
    # The last one of its kind: the first ones had to wait for connections to be opened.
    good = max(placed, key=lambda one: (one.error is None, len(one.order["items"]) == _ITEMS, one.id))
    bad = max(
        placed,
        key=lambda one: (
            one.error is not None,
            one.root_cause == "CannotDeliver",
            len(one.order["items"]) == _ITEMS,
            one.id,
        ),
    )
    if good.error is None:
        print_title(console, f"Order {good.id} went well")
        console.print("Steps, and below each the runs that it launched: the next step waited for all of them.")
        console.print("On the right, when it ended after the order was placed, and how long it took.\n")
        console.print(tree_of(await home.status(good.handle.id), min(console.width, WIDTH)))
    if bad.error is not None:
        print_title(console, f"Order {bad.id} failed: {bad.root_cause}")
        console.print("Follow the numbers: what had been done is undone in reverse order, through all services.\n")
        console.print(tree_of(await home.status(bad.handle.id), min(console.width, WIDTH)))
        print_title(console, "What `await handle.wait()` raises for it: one traceback across services")
        try:
            await bad.handle.wait()
        except DistributedError as error:
            print_traceback(console, error)
