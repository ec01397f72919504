"""Who is subscribed, and what is pending for them: `scoop-outbox handlers [list] | forget`."""

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
    """See who is subscribed and what is pending for them, or forget who is gone for good."""


@handlers.command("list")
@click.option("--service", metavar="NAME", help="Only those of this service.")
@on_a_database
def list_(*, service: str | None, database: str | None, schema: str) -> None:
    """List who is subscribed: a line of fields with tabs between them for each.

    waiting: messages that somebody waits for and that have not been taken in. unstarted: runs that have executed
    nothing. under way: other runs that have not ended. due: pieces of mail that could be seen to now. Counts end at
    10000.
    """
    with _opened(database, schema) as opened:
        found = opened.read(service)
    if not found:
        click.echo("nobody is subscribed", err=True)
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
@click.option("--topic", metavar="NAME", help="Forget only that they listen on this topic; what is pending stays.")
@click.option(
    "--pending",
    "given",
    type=click.Choice(["fail", "skip"]),
    help="What becomes of what waits for them: it fails, or counts as done without a result.",
)
@click.option("--force", is_flag=True, help="Although workers of the service are alive.")
@click.option(
    "--abandon", is_flag=True, help="Although runs are under way: they end rollback_failed, and nothing is undone."
)
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
    """Forget SAGA of SERVICE, or all sagas of it: nobody waits for them from then on.

    Says what it did, and exits with 1 when it was refused or something is left. It can be called again.
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
        f"{answer.waiting} messages and {answer.unstarted} runs that had not begun {done}, "
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
    return Pending(click.prompt("What becomes of them?", type=click.Choice(["fail", "skip"])))


def _pending(answer: Forgetting) -> str:
    return "; ".join(
        f"{in_one_line(one.saga)}: {one.waiting} messages that are waited for, {one.unstarted} runs that have not begun"
        for one in answer.handlers
        if one.pending
    )


def _refusal(answer: Forgetting, service: str, saga: str | None, topic: str | None) -> str:
    from scoop_outbox.operations.handlers import ForgetStatus

    if answer.status is ForgetStatus.REFUSED_ALIVE:
        return (
            f"workers of {service} are alive. Stop them; or deploy a version without what is to be forgotten, and say "
            "--force"
        )
    if answer.status is ForgetStatus.REFUSED_PENDING:
        return f"{_pending(answer)}. Say --pending fail or --pending skip"
    if answer.status is ForgetStatus.REFUSED_ACTIVE:
        runs = "\n".join(
            f"  {run.id}  {in_one_line(run.saga)}  {run.state}  after {run.step!r}" for run in answer.active
        )
        return f"runs are under way; let code that knows them end them, or say --abandon:\n{runs}"
    what = service if saga is None else f"{saga} of {service}"
    return f"there is no handler {what}" + ("" if topic is None else f" on {topic}")


def _left(answer: Forgetting) -> str:
    if answer.open:
        return "a transaction is still open that began before: call this again when it has ended"
    return f"{answer.left} are being executed at this moment: call this again, or abandon them"


def _opened(database: str | None, schema: str) -> Handlers:
    from scoop_outbox.operations.handlers import Handlers

    return Handlers(required(database), schema=schema)
