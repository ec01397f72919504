"""Workers and relays of the code before homes work beside those of today on one database, migrated to the newest."""

from __future__ import annotations

import io
import os
import secrets
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scoop_outbox import Scoop
from tests.carriers import BUILTIN, RABBITMQ
from tests.crash import flow
from tests.crash.history import HOMES, code_before_homes
from tests.crash.ledger import assert_exactly_once, count, is_quiet
from tests.crash.processes import Fleet, Process
from tests.crash.test_kill_9 import _ends
from tests.homes.sites import create_topics_now
from tests.waiting import until_blocking

ORDERS = 60


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of the last code that does not know other homes."""
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(fileobj=io.BytesIO(code_before_homes())) as files:
        files.extractall(folder, filter="data")
    assert not (folder / HOMES).exists()
    return folder


@pytest.fixture
def older_fleet(database_url: str, older: Path, tmp_path: Path) -> Iterator[Fleet]:
    """Processes of the older code."""
    (tmp_path / "older").mkdir()
    fleet = Fleet(database_url, tmp_path / "older", older)
    try:
        yield fleet
    finally:
        fleet.stop()


def code(folder: Path) -> dict[str, str]:
    """What makes a process import this code, adapters too, wherever others are installed."""
    return {"PYTHONPATH": os.pathsep.join(map(str, (folder, folder / "adapters/kafka", folder / "adapters/rabbitmq")))}


@pytest.fixture(params=[None, "stock"], ids=["no name", "a name"])
def name(request: pytest.FixtureRequest) -> str | None:
    """That which processes of today have for their home: of the control topics that `create_topics_now` makes."""
    given: str | None = request.param
    return given


@pytest.fixture(params=[BUILTIN, RABBITMQ])
def settings(request: pytest.FixtureRequest, name: str | None) -> dict[str, str]:
    """What the processes of today read."""
    named = {} if name is None else {"SCOOP_OUTBOX_HOME": name}
    if request.param == BUILTIN:
        return named
    url: str = request.getfixturevalue("rabbitmq_url")
    prefix = f"t{secrets.token_hex(6)}."
    create_topics_now(url, prefix)
    return {"SCOOP_OUTBOX_BROKER": url, "SCOOP_TEST_PREFIX": prefix, **named}


@pytest.mark.timeout(240)
def test_workers_of_the_code_before_homes_work_beside_those_of_today(
    database_url: str,
    effects: psycopg.Connection[Any],
    fleet: Fleet,
    older_fleet: Fleet,
    older: Path,
    settings: dict[str, str],
) -> None:
    prefix = settings.get("SCOOP_TEST_PREFIX", "")
    effects.execute("update scoop_outbox.home set prefix = %s", (prefix or "scoop.",))
    before = {name: value for name, value in settings.items() if name != "SCOOP_OUTBOX_HOME"} | code(older)
    old = [older_fleet.worker(f"flow:{service}", **before) for service in flow.SERVICES] + [
        older_fleet.start("relay", **before)
    ]
    new = [fleet.worker(f"flow:{service}", **settings) for service in flow.SERVICES] + [
        fleet.start("relay", **settings)
    ]
    for process in (*old, *new):
        process.wait_until_ready()
    topic = f"{prefix}order.placed"
    launcher = Scoop("launcher", database=database_url, broker=settings.get("SCOOP_OUTBOX_BROKER"))
    for number in range(1, ORDERS + 1):
        launcher.launch_sync(topic, {"n": number}, key=str(number % 16))
    launcher.close_sync()
    until_blocking(lambda: is_quiet(effects, ORDERS, topic), 120, 0.05)
    assert_exactly_once(effects)
    assert sum(_ends(effects).values()) == 4 * ORDERS
    for processes in (old, new):
        pids = [process.pid for process in processes]
        assert count(effects, "select count(*) from effect where pid = any(%s)", pids) > ORDERS, processes
    for process in old:
        assert "database: newer than this code" in process.log
        assert_nothing_failed(process)
    for process in new:
        assert_nothing_failed(process)


def assert_nothing_failed(process: Process) -> None:
    """It has logged nothing that is not what orders fail with on purpose."""
    assert "UndefinedColumn" not in process.log
    assert "run: interrupted" not in process.log
    assert "Traceback" not in process.log
