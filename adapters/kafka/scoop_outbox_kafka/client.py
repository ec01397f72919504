"""Making clients of librdkafka, and the thread that one of them is used on."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import KafkaException

from scoop_outbox.broker import BrokerError
from scoop_outbox_kafka.settings import Settings

T = TypeVar("T")


def make(kind: Callable[[Any], T], settings: Settings, configuration: Mapping[str, object]) -> T:
    """Return a client.

    With `oauth_cb` this waits for the first token, for ten seconds at most: not on an event loop.

    Args:
        kind: its class.
        settings: for the secrets that an error must not show.
        configuration: all that it is made with.

    Raises:
        BrokerError: the settings do not go together, or there is no token.
    """
    try:
        return kind(dict(configuration))
    except SystemError:
        # So the client says that `oauth_cb` has raised something.
        reason = "oauth_cb failed, see the log"
    except KafkaException as error:
        reason = error.args[0].str()
    except (TypeError, ValueError) as error:
        reason = str(error)
    raise BrokerError(settings.redacted(f"no Kafka {kind.__name__.lower()} can be made: {reason}"))


class ClientThread:
    """A thread for one client, and for the process that made it.

    Not of an executor: Python waits for the threads of those when a program ends, and one that waits for the word of a
    broker which is frozen does not come back.

    Args:
        name: for whoever looks at threads.
    """

    def __init__(self, name: str) -> None:
        """Start the thread."""
        self._kind = name.rpartition("-")[2]
        self._pid = os.getpid()
        self._ended = False
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    @property
    def is_ours(self) -> bool:
        """Whether this process has the thread, and is not a fork of the one that has it."""
        return os.getpid() == self._pid

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call a function on the thread, behind those that were asked for before.

        Raises:
            BrokerError: the thread was ended, or this process is a fork of the one that has it.
        """
        if self._ended:
            raise BrokerError(f"this {self._kind} is closed")
        if not self.is_ours:
            raise BrokerError(
                f"this {self._kind} was opened before the process was forked, and its threads stayed there: "
                "open one in each process"
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def call() -> None:
            try:
                result = function(*args)
            except BaseException as error:  # noqa: BLE001 - it is told to whoever waits
                _tell(loop, answer, answer.set_exception, error)
            else:
                _tell(loop, answer, answer.set_result, result)

        self._calls.put(call)
        return await answer

    def end(self) -> None:
        """End the thread when all is done that was asked for."""
        self._ended = True
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # what it holds may be the last batch


def _tell(
    loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any], settle: Callable[[Any], None], value: object
) -> None:
    def tell() -> None:
        if not answer.done():  # nobody waits any more
            settle(value)

    if not loop.is_closed():
        loop.call_soon_threadsafe(tell)
