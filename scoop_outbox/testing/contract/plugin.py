"""The contract's part in pytest: what was left out is said, and services get a database.

Named in a `conftest.py`: `pytest_plugins = ["scoop_outbox.testing.contract.plugin"]`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from scoop_outbox import Scoop
from scoop_outbox.devservers.postgres import postgres_for_tests
from scoop_outbox.testing.contract.selection import Contract, summary

_KEY: Final = "scoop_outbox_contract"
_told = pytest.StashKey[dict[str, None]]()


@pytest.fixture(scope="session")
def contract_postgres() -> Iterator[str]:
    """The URL of a Postgres whose role may create databases."""
    with postgres_for_tests() as url:
        yield url


@pytest.fixture
def database_url(contract_postgres: str) -> Iterator[str]:
    """The URL of a fresh, migrated database; a project that has such a fixture already overrides this one."""
    name = f"scoop_outbox_contract_{secrets.token_hex(8)}"
    with psycopg.connect(contract_postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    url = make_url(contract_postgres).set(database=name).render_as_string(hide_password=False)
    try:
        asyncio.run(Scoop("contract", database=url).migrate())
        yield url
    finally:
        with psycopg.connect(contract_postgres, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _lines() -> dict[str, None]:
    return dict.fromkeys(line for contract in Contract.concluded for line in summary(contract))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that prints, where several run the tests."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_KEY] = list(_lines())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Keep what a process told that ran tests."""
    output = getattr(node, "workeroutput", None) or {}
    node.config.stash.setdefault(_told, {}).update(dict.fromkeys(output.get(_KEY, ())))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests of which contract were not run, and why."""
    lines = _lines() | terminalreporter.config.stash.get(_told, {})
    if lines:
        terminalreporter.section("contracts")
        for line in sorted(lines):
            terminalreporter.line(line)
