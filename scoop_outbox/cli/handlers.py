"""Subscriptions, and what is pending for them: `scoop-outbox handlers [list] | forget`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from scoop_outbox.cli.options import in_one_line, on_a_database, required

if TYPE_CHECKING:
    from scoop_outbox.operations.handlers import Forgetting, Handler, Handlers, Pending

C = TypeVar("C", bound=Callable[..., Any])

REFUSED = 1
"""The exit code when nothing was forgotten, or something is left."""


class _Listing(click.Group):
    """Lists when nothing else is asked for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("handlers", cls=_Listing)
def handlers() -> None:
    """List subscribed sagas with their pending work, or forget those that are gone for good."""


@handlers.command("list")
@click.option("--service", metavar="NAME", help="Only sagas of this service.")
@on_a_database
def list_(*, service: str | None, database: str | None, schema: str) -> None:
    """List subscribed sagas, as tab-separated values.

    waiting: awaited messages that are not taken in yet. unstarted: runs that have executed nothing. under way: other
    runs that have not ended. due: wake-ups that are due now. Counts end at 10000.
    """
    with _opened(database, schema) as opened:
        found = opened.read(service)
    if not found:
        click.echo("no subscriptions", err=True)
        return
    click.echo("service\tsaga\ttopics\tsince\talive\twaiting\tunstarted\tunder way\tdue")
    for one in found:
        click.echo("\t".join(_fields(one)))


def _fields(one: Handler) -> Iterable[str]:
    yield in_one_line(one.service)
    yield in_one_line(one.saga)
    yield ", ".join(map(in_one_line, one.topics)) or "(forgotten)"
    yield "-" if one.since is None else one.since.isoformat(timespec="seconds")
    yield "yes" if one.alive else "no"
    yield from map(str, (one.waiting, one.unstarted, one.under_way, one.due))


@handlers.command()
@click.argument("service")
@click.argument("saga", required=False)
@click.option("--topic", metavar="NAME", help="Remove only the subscription to this topic; pending work stays.")
@click.option(
    "--pending",
    "given",
    type=click.Choice(["fail", "skip"]),
    help="End awaited messages and unstarted runs: as failed, or as done without a result.",
)
@click.option("--force", is_flag=True, help="Forget even while workers of the service are alive.")
@click.option("--abandon", is_flag=True, help="End runs under way as rollback_failed; nothing is undone.")
@on_a_database
def forget(
    *,
    service: str,
    saga: str | None,
    topic: str | None,
    given: str | None,
    force: bool,
    abandon: bool,
    database: str | None,
    schema: str,
) -> None:
    """Forget SAGA of SERVICE, or all sagas of it: from then on no launch waits for them.

    The exit code is 1 when it was refused or something is left. It can be repeated.
    """
    from scoop_outbox.operations.handlers import ForgetStatus, Pending

    pending = None if given is None else Pending(given)
    with _opened(database, schema) as opened:
        answer = opened.forget(service, saga, topic=topic, pending=pending, force=force, abandon=abandon)
        if answer.status is ForgetStatus.REFUSED_PENDING and _is_answered():
            pending = _ask(answer)
            answer = opened.forget(service, saga, topic=topic, pending=pending, force=force, abandon=abandon)
    if answer.status is not ForgetStatus.FORGOTTEN:
        raise click.ClickException(_refusal(answer, service, saga, topic))
    for one in answer.handlers:
        topics = in_one_line(topic or ", ".join(one.topics))
        click.echo(f"{in_one_line(one.service)}\t{in_one_line(one.saga)}\t{topics}\tforgotten")
    done = {Pending.FAIL: "failed", Pending.SKIP: "skipped", None: "ended"}[pending]
    click.echo(
        f"{answer.waiting} awaited messages and {answer.unstarted} unstarted runs {done}, "
        f"{answer.abandoned} runs abandoned",
        err=True,
    )
    if answer.left or answer.open:
        click.echo(_left(answer), err=True)
        sys.exit(REFUSED)


def _is_answered() -> bool:
    """Tell whether somebody is there who can be asked."""
    return sys.stdin.isatty()


def _ask(answer: Forgetting) -> Pending:
    from scoop_outbox.operations.handlers import Pending

    click.echo(_pending(answer))
    return Pending(click.prompt("End them as?", type=click.Choice(["fail", "skip"])))


def _pending(answer: Forgetting) -> str:
    return "; ".join(
        f"{in_one_line(one.saga)}: {one.waiting} awaited messages, {one.unstarted} unstarted runs"
        for one in answer.handlers
        if one.pending
    )


def _refusal(answer: Forgetting, service: str, saga: str | None, topic: str | None) -> str:
    from scoop_outbox.operations.handlers import ForgetStatus

    if answer.status is ForgetStatus.REFUSED_ALIVE:
        return f"workers of {service} are alive: stop them; or deploy a version without these sagas, and pass --force"
    if answer.status is ForgetStatus.REFUSED_PENDING:
        return f"work is pending ({_pending(answer)}): pass --pending fail or --pending skip"
    if answer.status is ForgetStatus.REFUSED_ACTIVE:
        runs = "\n".join(
            f"  {run.id}  {in_one_line(run.saga)}  {run.state}  after {run.step!r}" for run in answer.active
        )
        return f"runs are under way: let workers finish them, or pass --abandon:\n{runs}"
    what = service if saga is None else f"{saga} of {service}"
    return f"there is no handler {what}" + ("" if topic is None else f" on {topic}")


def _left(answer: Forgetting) -> str:
    if answer.open:
        return "an older transaction is still open: repeat the command when it has ended"
    return f"{answer.left} runs are being executed: repeat the command, or pass --abandon"


def _opened(database: str | None, schema: str) -> Handlers:
    from scoop_outbox.operations.handlers import Handlers

    return Handlers(required(database), schema=schema)
