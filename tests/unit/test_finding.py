"""Where a server for tests comes from: the order, and what is said when a container does not start."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from scoop_outbox.devservers import _finding as module
from scoop_outbox.devservers._docker import run_container
from scoop_outbox.devservers._errors import ServerNotFoundError, ServerStartError
from scoop_outbox.devservers._finding import Started, found
from scoop_outbox.devservers._postgres_installation import BINARIES
from scoop_outbox.devservers.kafka import KAFKA_URL, kafka_for_tests
from scoop_outbox.devservers.postgres import DATABASE_URL, postgres_for_tests
from scoop_outbox.devservers.rabbitmq import RABBITMQ_URL, rabbitmq_for_tests

NAMED = "SCOOP_OUTBOX_TEST_FINDING"


@dataclass
class Running:
    url: str


class Sources:
    """What a server may come from, and what was asked for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, named: str | None = None, docker: bool = False) -> None:
        self.asked: list[str] = []
        self.folder: Path | None = None
        monkeypatch.setattr(module, "docker_answers", lambda: docker)
        monkeypatch.delenv(NAMED, raising=False)
        if named is not None:
            monkeypatch.setenv(NAMED, named)

    def check(self, url: str) -> None:
        self.asked.append(f"check {url}")

    @contextmanager
    def container(self) -> Iterator[str]:
        self.asked.append("container")
        yield "of a container"
        self.asked.append("container removed")

    @contextmanager
    def installed(self, folder: Path) -> Iterator[Started]:
        self.asked.append("installed")
        self.folder = folder
        assert folder.is_dir()
        yield Running("of what is installed")

    def found(self) -> AbstractContextManager[str]:
        return found(NAMED, self.check, self.container, self.installed)


def test_a_server_that_is_named_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Sources(monkeypatch, named="x://named", docker=True)
    with sources.found() as url:
        assert url == "x://named"
    assert sources.asked == ["check x://named"]


def test_a_container_comes_before_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Sources(monkeypatch, docker=True)
    with sources.found() as url:
        assert url == "of a container"
    assert sources.asked == ["container", "container removed"]


def test_what_is_installed_comes_last_and_its_folder_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Sources(monkeypatch)
    with sources.found() as url:
        assert url == "of what is installed"
    assert sources.asked == ["installed"]
    assert sources.folder is not None
    assert not sources.folder.exists()


class FakeContainer:
    """Stands in for testcontainers' DockerContainer, and notes what it is told."""

    told: dict[str, Any]
    fails: Exception | None = None

    def __init__(self, image: str) -> None:
        type(self).told = {"image": image}

    def __getattr__(self, name: str) -> Callable[..., FakeContainer]:
        def note(*values: Any, **named: Any) -> FakeContainer:
            self.told[name] = named or values
            return self

        return note

    def __enter__(self) -> Self:
        if self.fails is not None:
            raise self.fails
        return self

    def __exit__(self, *_: object) -> None:
        self.told["removed"] = True

    def get_container_host_ip(self) -> str:
        return "docker.host"

    def get_exposed_port(self, port: int) -> int:
        return port + 1


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> type[FakeContainer]:
    class Container(FakeContainer): ...

    monkeypatch.setattr(module, "docker_answers", lambda: True)
    monkeypatch.setattr("testcontainers.core.container.DockerContainer", Container)
    for variable in (DATABASE_URL, KAFKA_URL, RABBITMQ_URL):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv(BINARIES, raising=False)
    return Container


@pytest.mark.parametrize(
    "finder, image, url",
    [
        (postgres_for_tests, "postgres:17", r"postgresql://postgres:\S+@docker.host:5433/postgres"),
        (kafka_for_tests, "apache/kafka:4.3.1", r"kafka://127.0.0.1:\d+"),
        (rabbitmq_for_tests, "rabbitmq:4", r"amqp://scoop:\S+@docker.host:5673/"),
    ],
)
def test_each_server_is_run_in_a_container_where_docker_answers(
    docker: type[FakeContainer], finder: Callable[[], AbstractContextManager[str]], image: str, url: str
) -> None:
    with finder() as given:
        assert "removed" not in docker.told
    assert docker.told["image"] == image
    assert docker.told["removed"]
    assert re.fullmatch(url, given)


def test_a_container_that_does_not_start_is_said_in_words(docker: type[FakeContainer]) -> None:
    docker.fails = TimeoutError("it was not ready in time")
    said = r"A container of image:1 did not start \(TimeoutError\): it was not ready in time"
    with pytest.raises(ServerStartError, match=said), run_container("image:1", 1, {}, "ready"):
        pytest.fail("it does not run")


def test_what_fails_while_a_container_runs_is_not_taken_for_its_failure(docker: type[FakeContainer]) -> None:
    with pytest.raises(ServerNotFoundError, match="of the test"), run_container("image:1", 1, {}, "ready"):
        raise ServerNotFoundError("of the test")
