"""What the demonstration shows while it runs, and at its end."""

from __future__ import annotations

import io
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from scoop_outbox.demo.count import ClosingCount, Progress

WIDTH = 100
"""How wide text is where there is no terminal to ask."""

_WORK = {
    "orders": "orders completed, cancelled",
    "stock": "items reserved, released",
    "payments": "cards charged, refunded",
    "shipping": "parcels handed over, cancelled",
}


def open_console() -> Console:
    """Return a console on stdout that can print every name, wherever the output goes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A customer may have an umlaut in her name, and a terminal no umlauts.
        sys.stdout.reconfigure(errors="replace")
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


class ProgressDisplay:
    """The progress of the orders: a table that is drawn again and again, or a line now and then without a terminal."""

    def __init__(self, console: Console, orders: int, broker: str | None) -> None:
        """Show nothing yet; use it as a context manager. What carries the messages has a name if it is a broker."""
        self._console = console
        self._orders = orders
        self._broker = broker
        self._began = time.monotonic()
        self._last_line = 0.0
        self._shown: Sequence[Progress] = ()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Also gives the terminal its cursor back.
        if self._live is not None:
            self._live.stop()

    def update(self, services: Sequence[Progress], carried: int | None, *, last: bool = False) -> None:
        """Show where the services stand, and how many messages the broker has carried if it is not the built-in one.

        The orders that have ended are those that `orders` is done with.
        """
        seconds = time.monotonic() - self._began
        if self._live is not None:
            self._live.update(self._table(seconds, services, carried), refresh=True)
        elif services != self._shown and (last or seconds - self._last_line >= 1):
            self._shown, self._last_line = services, seconds
            counts = "; ".join(f"{row.service} {row.done} done, {row.undone} undone" for row in services)
            if carried is not None:
                counts += f"; {self._broker} {carried:,} messages"
            self._console.print(f"{seconds:5.1f} s  {counts}", soft_wrap=True)

    def _table(self, seconds: float, services: Sequence[Progress], carried: int | None) -> Group:
        table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
        table.add_column("service", width=10)
        table.add_column("counts in its own tables", width=32)
        for column, style in (("under way", "yellow"), ("done", "green"), ("undone", "red")):
            table.add_column(column, style=style, justify="right", width=9)
        for row in services:
            counts = (str(number) if number else "[dim]-[/]" for number in (row.open, row.done, row.undone))
            table.add_row(row.service, f"[dim]{_WORK[row.service]}[/]", *counts)
        ended = sum(row.done + row.undone for row in services if row.service == "orders")
        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.add_row(
            ProgressBar(self._orders, ended, width=50, complete_style="green"),
            f"{ended} of {self._orders} orders ended",
            f"[dim]{seconds:.1f} s[/]",
        )
        lines: list[RenderableType] = [table, Text(), bar]
        if carried is not None:
            lines.append(Text(f"{carried:,} messages over {self._broker}", style="cyan"))
        return Group(*lines)


def print_title(console: Console, title: str) -> None:
    """Begin a section."""
    console.print()
    console.print(Rule(Text(title, style="bold"), align="left", style="dim"))


def print_traceback(console: Console, error: BaseException) -> None:
    """Print an exception as Python prints it: what rebuilt it from another process's data did so completely."""
    console.print(Text("".join(traceback.format_exception(error)).rstrip()), soft_wrap=True)


def print_carried(console: Console, broker: str, counts: Mapping[str, int], said: int = 0) -> None:
    """Print how many messages each topic has carried, and how many homes have sent each other about them."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("topic")
    table.add_column("messages", justify="right")
    for topic, number in counts.items():
        table.add_row(Text(topic), f"{number:,}")
    console.print(table)
    console.print(f"\n[bold cyan]{sum(counts.values()):,} messages went over {broker}.[/]")
    if said:
        console.print(f"In {said:,} more the four homes told each other who listens there, and what became of these.")


def print_closing_count(console: Console, count: ClosingCount) -> None:
    """Print the count, and whatever does not add up."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for column in ("status", "orders", "with stock reserved", "paid", "shipped", "pieces", "EUR"):
        table.add_column(column, justify="left" if column == "status" else "right")
    for row in count.ended:
        amount = f"{row.cents // 100:,}.{row.cents % 100:02}"
        numbers = map(str, (row.orders, row.reserved, row.paid, row.shipped, row.units))
        table.add_row(row.status, *numbers, amount, style="green" if row.status == "completed" else "red")
    console.print(table)
    console.print()
    if count.problems:
        console.print(f"[bold red]It does not add up[/] ({len(count.problems)} problems):")
        for problem in count.problems[:20]:
            console.print(f"  - {problem}", markup=False)
    else:
        console.print(
            "[bold green]It adds up:[/] every completed order has its stock, its payment and its shipment, and\n"
            "every cancelled one has none; no piece of stock is missing."
        )
