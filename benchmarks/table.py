"""Tables: what was measured, as median and range, and whether it reaches what it shall."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import rich.table
from rich.console import Console

Cell = Sequence[float] | str
"""One value for each run of the benchmark, or a text."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a value shall be at least, or at most."""

    text: str
    value: float
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        reached = (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)
        return f"{self.text}: {number(self.value)} ({'reached' if reached else 'NOT reached'})"


@dataclass(slots=True)
class Table:
    """The result of a benchmark.

    Args:
        title: what was measured.
        columns: the heads; the first is that of the rows' names.
    """

    title: str
    columns: Sequence[str]
    rows: list[tuple[str, Sequence[Cell]]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, *cells: Cell) -> None:
        self.rows.append((name, cells))

    def show(self, console: Console) -> None:
        shown = rich.table.Table(title=self.title, title_justify="left", title_style="bold", min_width=60)
        for index, column in enumerate(self.columns):
            shown.add_column(column, justify="right" if index else "left")
        for name, cells in self.rows:
            shown.add_row(name, *map(text, cells))
        console.print(shown)
        for line in self._below():
            console.print(f"  {line}", highlight=False)
        console.print()

    def markdown(self) -> Iterator[str]:
        yield from (f"### {self.title}", "")
        yield f"| {' | '.join(self.columns)} |"
        yield f"| --- |{' ---: |' * (len(self.columns) - 1)}"
        for name, cells in self.rows:
            yield f"| {' | '.join((name, *map(text, cells)))} |"
        yield ""
        for line in self._below():
            yield f"- {line}"
        yield ""

    def _below(self) -> Iterator[str]:
        yield from (str(target) for target in self.targets)
        yield from self.notes


def text(cell: Cell) -> str:
    """Show median and range."""
    if isinstance(cell, str):
        return cell
    if not cell:
        return "-"
    return f"{number(statistics.median(cell))} [{number(min(cell))}-{number(max(cell))}]"


def number(value: float) -> str:
    """Show three digits, and all those before the point."""
    for limit, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= limit:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}"


def ratios(values: Sequence[float], ceilings: Sequence[float]) -> list[float]:
    """Divide what was measured side by side."""
    return [value / ceiling for value, ceiling in zip(values, ceilings, strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
