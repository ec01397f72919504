"""What the README of the example shows is what happens: the courier, a shop in Python, and orders."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from scoop_outbox.devservers.rabbitmq import start_rabbitmq
from tests.docs.markdown import blocks, comparable, links, programs
from tests.participant.node import EXAMPLE
from tests.waiting import until_blocking

README = EXAMPLE / "README.md"
KNOWN = """
select from scoop_outbox.peer p, scoop_outbox.home h
where p.name = 'courier' and p.revision > 0 and p.confirmed = h.revision
"""


@contextmanager
def process(*command: str | Path, folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A program that runs until the test has ended, with what it says in a file."""
    with (
        (folder / "said").open("a") as said,
        subprocess.Popen(command, cwd=folder, env=environment, stderr=said, text=True) as started,
    ):
        try:
            yield started
        finally:
            started.terminate()
            started.wait(20)


def command(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def without_what_differs(text: str) -> str:
    return re.sub(r"CZ-\w{6}", "CZ-", comparable(text))


@pytest.mark.timeout(300)  # it starts a server, and five programs
def test_orders_end_as_the_readme_says(
    example: Path, database_url: str, rabbitmq_installed: None, tmp_path: Path
) -> None:
    for program in programs(README):
        (tmp_path / program.file).write_text(program.code, encoding="utf-8")
    hello, sold, failed = [without_what_differs(content) for _, content in blocks(README, "text")]
    # A server of its own: the topics have the names that the README says.
    with start_rabbitmq(tmp_path / "rabbitmq") as server:
        environment = os.environ | {
            "BROKER": server.url,
            "HOME_FILE": str(tmp_path / "courier.db"),
            "SCOOP_OUTBOX_BROKER": server.url,
            "SCOOP_OUTBOX_DATABASE": database_url,
            "NO_COLOR": "1",
        }
        with process("node", example / "service.js", folder=tmp_path, environment=environment) as courier:
            applied = command(tmp_path, environment, "-m", "scoop_outbox", "topology", "apply", "shop:shop")
            assert applied.returncode == 0, applied.stderr
            with (
                process(sys.executable, "shop.py", folder=tmp_path, environment=environment),
                psycopg.connect(database_url, autocommit=True) as connection,
            ):
                until_blocking(lambda: connection.execute(KNOWN).fetchone() is not None, 30)
                ordered = command(tmp_path, environment, "order.py", "Prague")
                assert without_what_differs(ordered.stdout) == sold, ordered.stderr
                ordered = command(tmp_path, environment, "order.py", "Atlantis")
        assert courier.returncode == 0
    told = without_what_differs(ordered.stderr)
    place = 0
    for part in failed.split("  ...\n"):
        place = told.index(part, place)
    said = (tmp_path / "said").read_text("utf-8")
    assert all(line in said for line in hello.splitlines())


def test_links_resolve() -> None:
    for link in links(README):
        assert (EXAMPLE / link).exists(), link


def test_the_saga_that_is_shown_is_the_courier_s() -> None:
    ((_, shown),) = blocks(README, "js")
    text = (EXAMPLE / "courier.js").read_text("utf-8")
    assert re.sub(r"\s+", " ", shown).strip() in re.sub(r"\s+", " ", text)
