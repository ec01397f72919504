"""The command line: `scoop-outbox`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scoop_outbox._log import get_logger
from scoop_outbox.cli.dead_letters import dead_letters
from scoop_outbox.cli.doctor import doctor
from scoop_outbox.cli.explain import explain
from scoop_outbox.cli.external import complete, fail
from scoop_outbox.cli.handlers import handlers
from scoop_outbox.cli.home import home
from scoop_outbox.cli.log import is_json, with_log_format, with_log_level, write_log
from scoop_outbox.cli.options import required, with_home_name
from scoop_outbox.cli.requests import abandon, cancel, retry, rollback, skip
from scoop_outbox.cli.retention import Archive, prune, with_retention
from scoop_outbox.cli.roles import roles
from scoop_outbox.cli.runs import runs
from scoop_outbox.cli.settings import broker_settings, settings_of
from scoop_outbox.cli.show import show
from scoop_outbox.cli.topology import topology
from scoop_outbox.errors import ScoopError

if TYPE_CHECKING:
    from scoop_outbox.app import Scoop

log = get_logger(__name__)

_database = click.option(
    "--database",
    metavar="URL",
    envvar="SCOOP_OUTBOX_DATABASE",
    help="PostgreSQL URL [env: SCOOP_OUTBOX_DATABASE].",
)
_broker = click.option(
    "--broker",
    metavar="URL",
    envvar="SCOOP_OUTBOX_BROKER",
    help="Broker URL, kafka:// or amqp://; default: the built-in broker [env: SCOOP_OUTBOX_BROKER].",
)
_schema = click.option("--schema", default="scoop_outbox", show_default=True, help="Postgres schema of the tables.")
_grace = click.option(
    "--grace", default=20.0, show_default=True, help="Grace period after SIGTERM for running steps, in seconds."
)
_port = click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="HTTP port for /livez, /readyz and /metrics; 0 picks a free one; default: none.",
)
_host = click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on with --port; 0.0.0.0 is all interfaces.",
)


class _Group(click.Group):
    """Shows our own errors without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except ScoopError as error:
            if is_json():
                log.critical("process: failed (%s)", error)
                ctx.exit(1)
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="scoop-outbox")
def main() -> None:
    """Structured cooperation for message-driven systems on Postgres."""


main.add_command(dead_letters)
main.add_command(doctor)
main.add_command(explain)
main.add_command(handlers)
main.add_command(home)
main.add_command(topology)
main.add_command(cancel)
main.add_command(rollback)
main.add_command(retry)
main.add_command(skip)
main.add_command(abandon)
main.add_command(complete)
main.add_command(fail)
main.add_command(prune)
main.add_command(roles)
main.add_command(runs)
main.add_command(show)


@main.command()
@click.option("--database", metavar="URL", help="PostgreSQL URL; default: a temporary server.")
@click.option(
    "--broker",
    metavar="NAME|URL",
    envvar="SCOOP_OUTBOX_BROKER",
    help="kafka or rabbitmq (starts one on this machine), or a broker URL; default: the built-in broker.",
)
@broker_settings
@click.option(
    "--orders",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File of orders to place, one JSON object a line.",
)
@click.option("--count", metavar="N", type=click.IntRange(min=1), help="Number of orders; default: all.")
@click.option(
    "--homes",
    type=click.Choice(["one", "each"]),
    default="one",
    show_default=True,
    help="One database for all services, or one for each; each needs --broker.",
)
@click.option("--keep", is_flag=True, help="Keep everything running at the end, until Ctrl-C.")
def demo(
    *,
    database: str | None,
    broker: str | None,
    settings: Sequence[str],
    settings_file: Path | None,
    orders: Path | None,
    count: int | None,
    homes: str,
    keep: bool,
) -> None:
    """Run a demonstration: orders go through four services, and roll back when one of them fails.

    Starts a Postgres in a temporary folder, four services and a relay, and leaves nothing behind.
    With --database, only the schema demo_shop is replaced. With --broker URL, the topics and queues that it creates
    have unique names; delete them yourself.
    """
    chosen = settings_of(settings, settings_file)
    try:
        from scoop_outbox.demo import names

        # Before the services are imported. A name alone is no broker to them.
        names.choose(broker)
        for variable in ("SCOOP_OUTBOX_BROKER", "SCOOP_OUTBOX_HOME"):
            os.environ.pop(variable, None)
        from scoop_outbox.demo.demonstration import Options, demonstrate
        from scoop_outbox.devservers.postgres import PostgresNotFoundError, PostgresStartError

        try:
            code = demonstrate(Options(database, broker, orders, count, homes == "each", keep, chosen))
        except (PostgresNotFoundError, PostgresStartError) as error:
            raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:  # before the demonstration could look out for it: nothing has been started
        code = 130
    sys.exit(code)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def postgres(folder: Path) -> None:
    """Start a development Postgres that keeps its data in FOLDER, until Ctrl-C."""
    import signal

    from scoop_outbox.devservers.postgres import PostgresNotFoundError, PostgresStartError, start_postgres

    ended = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ended)  # waited for below, and no traceback until then
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with start_postgres(folder.resolve()) as server:
            click.echo(f"export SCOOP_OUTBOX_DATABASE={server.url}")
            signal.sigwait(ended)
    except (PostgresNotFoundError, PostgresStartError, OSError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@_database
@_schema
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Time limit for locking tables that are in use.",
)
@click.option(
    "--lock-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Time limit of one attempt, during which other transactions wait.",
)
@click.option(
    "--roles",
    "prefix",
    metavar="PREFIX",
    envvar="SCOOP_OUTBOX_ROLES",
    help="Migrate as PREFIX_owner, and give the roles of `roles print` what they need [env: SCOOP_OUTBOX_ROLES].",
)
@with_log_format
def migrate(
    *, database: str | None, schema: str, wait: float, lock_timeout: float, prefix: str | None, log_format: str
) -> None:
    """Create or upgrade the tables. Safe to repeat, and to run from several places at once.

    Locks are taken in short attempts, so that other transactions do not wait for long. The log names who blocks them.
    """
    from scoop_outbox.store.migrate import migrate

    url = required(database)
    write_log("warning", log_format)
    revision = migrate(url, schema, wait=wait, lock_timeout=lock_timeout, roles=prefix)
    click.echo(f"schema {schema} is at revision {revision}")


@main.command()
@click.argument("app", metavar="MODULE:APP")
@_database
@_broker
@broker_settings
@click.option(
    "--group", metavar="NAME", help="Consumer group or queue of the service; default: what the application declares."
)
@click.option(
    "--start",
    metavar="WHERE",
    help="Start of a new group: earliest, latest, a time, group:NAME; default: what the application declares.",
)
@with_home_name
@click.option("--slots", default=16, show_default=True, help="Number of runs executed concurrently.")
@click.option(
    "--high-water",
    default=10_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of due runs at which intake pauses (backpressure); it resumes at half of it.",
)
@click.option(
    "--max-interruptions",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="Interruptions in a row, without progress, after which a run is parked.",
)
@click.option(
    "--slow-step-after",
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Time after which a step that is still being executed, and has no timeout, is logged.",
)
@click.option("--relay/--no-relay", default=False, help="Run a relay in this process too; it prunes, too.")
@with_retention
@_port
@_host
@_grace
@with_log_level
@with_log_format
def worker(
    *,
    app: str,
    database: str | None,
    broker: str | None,
    settings: Sequence[str],
    settings_file: Path | None,
    group: str | None,
    start: str | None,
    home_name: str | None,
    slots: int,
    high_water: int,
    max_interruptions: int,
    slow_step_after: float,
    relay: bool,
    retention: timedelta | None,
    retain_payload: timedelta | None,
    remember: timedelta,
    archive: Path | None,
    port: int | None,
    host: str,
    grace: float,
    log_level: str,
    log_format: str,
) -> None:
    """Execute the sagas of an application: MODULE:APP names a `Scoop`, as in shop.sagas:app.

    Workers of a service share its runs. SIGTERM lets running steps finish; a second one stops at once.
    """
    from scoop_outbox.cli.processes import Serving, load_app, run

    chosen = settings_of(settings, settings_file)
    write_log(log_level, log_format)
    scoop = load_app(app)
    scoop.configure(database=database, broker=broker, broker_settings=chosen, group=group, start=start, home=home_name)
    serving = Serving(
        worker=True,
        relay=relay,
        slots=slots,
        grace=grace,
        high_water=high_water,
        max_interruptions=max_interruptions,
        slow_step_after=slow_step_after,
        port=port,
        host=host,
        retention=retention,
        retain_payload=retain_payload,
        remember=remember,
    )
    _archiving(scoop, archive)
    run(scoop, serving)


def _archiving(scoop: Scoop, archive: Path | None) -> None:
    if archive is not None:
        scoop.on_archive(Archive(archive).one)


@main.command()
@_database
@_broker
@broker_settings
@_schema
@with_retention
@_port
@_host
@_grace
@with_log_level
@with_log_format
def relay(
    *,
    database: str | None,
    broker: str | None,
    settings: Sequence[str],
    settings_file: Path | None,
    schema: str,
    retention: timedelta | None,
    retain_payload: timedelta | None,
    remember: timedelta,
    archive: Path | None,
    port: int | None,
    host: str,
    grace: float,
    log_level: str,
    log_format: str,
) -> None:
    """Publish the outbox of a database, and prune what has ended.

    Each shard of the outbox has one relay as its owner; the others stand by. SIGTERM lets the current batch finish and
    hands the shards over; a second one stops at once.
    """
    from scoop_outbox.app import Scoop
    from scoop_outbox.cli.processes import Serving, run

    chosen = settings_of(settings, settings_file)
    write_log(log_level, log_format)
    url = required(database)
    scoop = Scoop("relay", database=url, broker=broker, schema=schema, broker_settings=chosen)
    serving = Serving(
        worker=False,
        relay=True,
        slots=1,
        grace=grace,
        host=host,
        port=port,
        retention=retention,
        retain_payload=retain_payload,
        remember=remember,
    )
    _archiving(scoop, archive)
    run(scoop, serving)
