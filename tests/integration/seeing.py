"""Services whose hierarchies operators look at, and the commands with which they do."""

from collections.abc import Callable
from typing import Any

import psycopg
from click.testing import CliRunner, Result

from scoop_outbox import Message, Scoop, Scope
from scoop_outbox.cli import main
from scoop_outbox.store.schema import DEFAULT_SCHEMA


def ask(url: str, question: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
        cursor = connection.execute(question.encode(), values)
        return cursor.fetchall() if cursor.description else []


def command(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--database", url])


def printed(url: str, *arguments: str) -> str:
    """What a command prints that succeeds."""
    result = command(url, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(url: str, *arguments: str) -> str:
    """What a command says that does not."""
    result = command(url, *arguments)
    assert result.exit_code == 1, result.output
    return result.stderr


async def nothing(scope: Scope, message: Message) -> None: ...


async def undo(scope: Scope, message: Message, error: Exception) -> None: ...


def launches(topic: str, **options: Any) -> Callable[..., Any]:
    """A step that launches a message on a topic."""

    async def launch(scope: Scope, message: Message) -> None:
        scope.launch(topic, message.payload, **options)

    return launch


def raises(text: str) -> Callable[..., Any]:
    async def fail(scope: Scope, message: Message, error: Exception | None = None) -> None:
        raise ValueError(text)

    return fail


def shop(url: str, *, charge: Callable[..., Any] = nothing) -> Scoop:
    """A service `shop` whose orders reserve and pay, in sagas of its own."""
    app = Scoop("shop", database=url)
    order = app.saga("place-order", on="orders")
    order.add_step("reserve", launches("reserve"), compensate=undo)
    order.add_step("pay", launches("payments"))
    app.saga("reserve", on="reserve").add_step("take", nothing, compensate=undo)
    app.saga("charge", on="payments").add_step("card", charge)
    return app


async def announced(app: Scoop) -> None:
    await app.announce()
    await app.close()
