"""`python -m benchmarks`: run all benchmarks, or those that are named."""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console

from benchmarks import (
    broker_hop,
    cancelling,
    drain,
    end_to_end,
    fan_out,
    history,
    homes,
    idle,
    intake,
    memory,
    processes,
    profile,
    pruning,
    relay,
    steady,
    steps,
    tree,
    waiting,
)
from benchmarks.conditions import conditions
from benchmarks.server import Bench, server
from benchmarks.table import Table

BENCHMARKS: dict[str, Callable[[Bench], Awaitable[list[Table]]]] = {
    "end-to-end": end_to_end.measure,
    "steps": steps.measure,
    "profile": profile.measure,
    "tree": tree.measure,
    "history": history.measure,
    "waiting": waiting.measure,
    "fan-out": fan_out.measure,
    "cancelling": cancelling.measure,
    "pruning": pruning.measure,
    "relay": relay.measure,
    "processes": processes.measure,
    "idle": idle.measure,
    "drain": drain.measure,
    "steady": steady.measure,
    "intake": intake.measure,
    "broker-hop": broker_hop.measure,
    "homes": homes.measure,
    "memory": memory.measure,
}
LEAST_RUNS = 3


def main() -> None:
    """Measure, and show what was measured."""
    arguments = _arguments()
    logging.basicConfig(level="WARNING")
    # A broker that has just been started is not ready for every client at once.
    logging.getLogger("scoop_outbox_kafka.librdkafka").setLevel("ERROR")
    # As wide as the tables are: what is redirected into a file must not be cut.
    console = Console() if Console().is_terminal else Console(width=200)
    lines: list[str] = []
    with server(arguments.database) as admin:
        quick = arguments.quick or arguments.smoke
        bench = Bench(admin, arguments.runs, quick, own=arguments.database is None, smoke=arguments.smoke)
        for name, value in conditions(admin, runs=bench.runs, quick=bench.quick):
            console.print(f"{name:>15}: {value}", highlight=False, soft_wrap=True)
            lines.append(f"| {name} | {value} |")
        console.print()
        lines = ["## Conditions", "", "| | |", "| --- | --- |", *lines, "", "## Results", ""]
        for name in arguments.names or BENCHMARKS:
            started = time.monotonic()
            for table in asyncio.run(_run(BENCHMARKS[name], bench)):
                table.show(console)
                lines += table.markdown()
            console.print(f"  {name} took {time.monotonic() - started:.0f} s\n", style="dim", highlight=False)
    if arguments.markdown is not None:
        title = ["# Performance: the numbers", "", "Written by `make bench`; see [performance.md](performance.md).", ""]
        arguments.markdown.write_text("\n".join([*title, *lines]).rstrip() + "\n", encoding="utf-8")


async def _run(measure: Callable[[Bench], Awaitable[list[Table]]], bench: Bench) -> list[Table]:
    return await measure(bench)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--runs", type=int, help=f"how often to measure (default: {LEAST_RUNS}, and 1 if quick)")
    parser.add_argument("--quick", action="store_true", help="small sizes: only to see that everything works")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: only to see that it runs at all")
    parser.add_argument(
        "--database", metavar="URL", help="a server where databases may be created; our own unless given"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write conditions and tables there too")
    arguments = parser.parse_args()
    if arguments.runs is None:
        arguments.runs = 1 if arguments.quick or arguments.smoke else LEAST_RUNS
    if arguments.runs < 1:
        parser.error("--runs is at least 1")
    return arguments


if __name__ == "__main__":
    main()
