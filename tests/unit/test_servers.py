"""The brokers that all tests share: started once, also when they do not start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from scoop_outbox.devservers._errors import ServerNotFoundError, ServerStartError
from tests.servers import SharedServers, ask


class Launcher:
    """What starts a server, or fails to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.events: list[str] = []

    @contextmanager
    def __call__(self) -> Iterator[str]:
        self.events.append("start")
        if self.error is not None:
            raise self.error
        yield "kafka://there"
        self.events.append("stop")


def test_a_server_is_started_once_and_stopped_at_the_end() -> None:
    launcher = Launcher()
    servers = SharedServers({"kafka": launcher})
    assert [servers.url("kafka"), servers.url("kafka")] == ["kafka://there", "kafka://there"]
    assert launcher.events == ["start"]
    servers.stop()
    assert launcher.events == ["start", "stop"]


@pytest.mark.parametrize("error", [ServerNotFoundError("not installed"), ServerStartError("not in 90 s")])
def test_a_server_that_cannot_be_had_is_tried_once(error: Exception) -> None:
    launcher = Launcher(error)
    servers = SharedServers({"kafka": launcher})
    for _ in range(2):
        with pytest.raises(type(error), match=str(error)):
            servers.url("kafka")
    assert launcher.events == ["start"]


@pytest.mark.parametrize(
    "error, told",
    [(ServerNotFoundError("not installed"), ServerNotFoundError), (ServerStartError("not in 90 s"), RuntimeError)],
)
def test_other_processes_are_told_why(error: Exception, told: type[Exception]) -> None:
    launcher = Launcher(error)
    with SharedServers({"kafka": launcher}).listening() as (address, key):
        for _ in range(2):
            with pytest.raises(told, match=str(error)):
                ask(address, key, "kafka")
    assert launcher.events == ["start"]
