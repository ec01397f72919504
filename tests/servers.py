"""The brokers of a test run: one of each kind for all worker processes, started when the first test needs it."""

import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing import connection
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

import pytest

from scoop_outbox.devservers._errors import ServerNotFoundError
from scoop_outbox.devservers.kafka import KafkaNotFoundError, kafka_for_tests
from scoop_outbox.devservers.rabbitmq import RabbitNotFoundError, rabbitmq_for_tests
from scoop_outbox.testing import servers_required

Finder = Callable[[], AbstractContextManager[str]]

FINDERS: Final[Mapping[str, Finder]] = MappingProxyType({"kafka": kafka_for_tests, "rabbitmq": rabbitmq_for_tests})
_ERRORS: Final = MappingProxyType({"kafka": KafkaNotFoundError, "rabbitmq": RabbitNotFoundError})


def skip_without(error: Exception, *, given: bool = False) -> NoReturn:
    """Skip the test that needs what is missing here, and say what to install; where nothing may be missing, it fails.

    Args:
        error: says what is missing, and how to get it.
        given: whether somebody has said where it is: then it is not missing, but wrong.
    """
    if given or servers_required():
        raise error
    pytest.skip(str(error))


class SharedServers:
    """Starts a server when somebody first asks for it, in this process, and stops all of them at the end."""

    def __init__(self, finders: Mapping[str, Finder] = FINDERS) -> None:
        self._finders = finders
        self._urls: dict[str, str | Exception] = {}
        self._lock = threading.Lock()
        self._held = ExitStack()

    def url(self, name: str) -> str:
        """Return the URL of a server; the first call starts it.

        One that did not start is not tried again: each try would take as long as its launcher is patient.

        Raises:
            ServerNotFoundError: it cannot be had here.
            ServerStartError: it was found and did not start.
        """
        with self._lock:
            if name not in self._urls:
                try:
                    self._urls[name] = self._held.enter_context(self._finders[name]())
                except Exception as error:  # noqa: BLE001 - raised below, for whoever asks
                    self._urls[name] = error
            found = self._urls[name]
        if isinstance(found, Exception):
            raise found
        return found

    def stop(self) -> None:
        """Stop what was started."""
        with self._lock:
            self._held.close()

    @contextmanager
    def listening(self) -> Iterator[tuple[str, str]]:
        """Answer other processes on this machine, and yield the address and the key they need to ask."""
        key = secrets.token_hex(16)
        with tempfile.TemporaryDirectory(prefix="scoop-outbox-tests-") as folder:
            address = str(Path(folder) / "servers")
            listener = connection.Listener(address, family="AF_UNIX", authkey=key.encode())
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            try:
                yield address, key
            finally:
                with connection.Client(address, family="AF_UNIX", authkey=key.encode()) as end:
                    end.send("")
                listener.close()

    def _accept(self, listener: connection.Listener) -> None:
        while True:
            asker = listener.accept()
            name = asker.recv()
            if not name:
                asker.close()
                return
            # Not here: while a server starts, others that run already may be asked for.
            threading.Thread(target=self._answer, args=(asker, name), daemon=True).start()

    def _answer(self, asker: connection.Connection, name: str) -> None:
        with asker:
            try:
                asker.send((True, self.url(name)))
            except Exception as error:  # noqa: BLE001 - the process that asked is the one to fail
                asker.send((False, (isinstance(error, ServerNotFoundError), str(error))))


def ask(address: str, key: str, name: str) -> str:
    """Return the URL of a server from the process that runs it for all.

    Raises:
        ServerNotFoundError: it cannot be had here.
        RuntimeError: it was found and did not start.
    """
    with connection.Client(address, family="AF_UNIX", authkey=key.encode()) as servers:
        servers.send(name)
        found, answer = servers.recv()
    if not found:
        missing, reason = answer
        raise (_ERRORS[name] if missing else RuntimeError)(reason)
    return str(answer)
