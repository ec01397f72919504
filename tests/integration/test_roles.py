"""The roles of `scoop-outbox roles print`: each can do its whole job, and nothing else."""

import re
from collections.abc import Iterator
from importlib import resources

import psycopg
import pytest
from psycopg import sql
from psycopg.adapt import PyFormat, Transformer
from sqlalchemy import LargeBinary
from sqlalchemy.dialects.postgresql import JSON

from scoop_outbox import DefinitionError
from scoop_outbox.store import queries
from scoop_outbox.store.roles import MEMBERS, script
from scoop_outbox.store.schema import DEFAULT_SCHEMA, tables
from tests.integration.roles import Roles, new_roles
from tests.integration.statement_kinds import UTILITY
from tests.integration.test_query_plans import examples

EXAMPLES = dict(examples())
STATEMENTS = queries.compiled(DEFAULT_SCHEMA)


def asked_by(*plans: str) -> set[str]:
    """The statements that modules of plans ask."""
    folder = resources.files("scoop_outbox.core.plans")
    texts = [(folder / f"{plan}.py").read_text("utf-8") for plan in plans]
    return {name for text in texts for name in re.findall(r"""["'](\w+)["']""", text)} & STATEMENTS.keys() - UTILITY


SETTINGS = {"plan_once", "search_indexes", "set_limits"}
HOME = {"read_home", "find_home", "read_revision"} | SETTINGS
PAYLOAD = {"read_taken_in", "read_roots"}
"""Who asks these sees what messages hold, or what sagas have made of them."""
LOOKING = asked_by("explain", "progress", "runs", "peers") | asked_by("inspect") - PAYLOAD | {"read_failures"} | HOME
LOOKING |= {
    "read_handlers",
    "read_alive",
    "read_under_way",
    "list_parked",
    "count_stuck",
    "count_due",
    "look_at_outbox",
    "may_read_place",
    "read_place",
}
EXECUTING = asked_by(
    *("claim", "execute", "settle", "news", "deadlines", "placement", "strategy", "mail", "workers", "failures"),
    *(
        "healing",
        "launch",
        "intake",
        "idempotency",
        "subscriptions",
        "required_handlers",
        "requests",
        "rollback",
        "home",
        "homes",
        "control",
        "silence",
        "sharing",
        "ancestors",
    ),
)
NEEDED = {
    "worker": EXECUTING | asked_by("parking", "progress", "inspect", "external") | HOME | {"look_at_outbox"},
    "relay": asked_by("leases", "outbox") | {"list_services_via_broker", "is_relayed", "name_home"} | HOME
    | {"read_silent_children", "send_control"},
    "intake": {"take_in"} | HOME,
    "pruner": asked_by("prune") | {"read_archive"} | HOME,
    "launcher": asked_by("launch", "idempotency", "required_handlers", "progress") | HOME
    | {"read_roots", "read_origins", "read_failures", "list_services_via_broker", "is_pruned"} | LOOKING,
    "operator": asked_by("stuck", "requests", "rollback", "external", "handlers", "healing", "dead_letters")
    | {"ask_above", "read_answer_from_above"}
    | asked_by("gone_homes", "restored", "silence", "control", "homes", "draining") | LOOKING,
    "reader": LOOKING,
}  # fmt: skip


def written_by(name: str) -> set[str]:
    """The tables that a statement changes."""
    text = STATEMENTS[name].text.decode()
    found: list[str] = re.findall(r'(?:insert into|delete from|(?<!do )update) "scoop_outbox"\.(\w+)', text)
    return set(found)


def used_by(name: str) -> set[str]:
    """The tables that a statement looks at or changes."""
    found: list[str] = re.findall(r'"scoop_outbox"\.(\w+)', STATEMENTS[name].text.decode())
    return set(found)


LAUNCHED = {"outbox", "child", "expected_root", "launched"}
FORBIDDEN = {
    "worker": asked_by("leases") | {"read_outbox", "delete_published", "drop_dead_letters", "prune", "erase_payload"},
    "relay": {name for name in EXAMPLES if written_by(name) & {"run", "message", "step", "child", "request", "mailbox"}}
    | {"claim_run", "read_taken_in", "read_children", "read_roots", "read_outside"},
    "intake": {name for name in EXAMPLES if used_by(name) & {"outbox", "request", "failure", "step"}},
    "pruner": {name for name in EXAMPLES if written_by(name) & {"outbox", "subscription", "worker", "outbox_shard"}}
    - {"release_elsewhere", "send_control", "report_started", "forward"},
    "launcher": {name for name in EXAMPLES if written_by(name) - LAUNCHED} | {"read_taken_in", "read_outbox"},
    "operator": {"read_taken_in", "read_roots", "read_outbox", "claim_run", "prune", "acquire_shards"},
    "reader": {name for name in EXAMPLES if written_by(name)} | PAYLOAD | {"read_outbox", "read_dead_letter"},
}  # fmt: skip


@pytest.fixture
def roles(database_url: str) -> Iterator[Roles]:
    """The roles of a fresh database."""
    with new_roles(database_url) as made:
        made.apply()
        yield made


def refused(connection: psycopg.Connection[tuple[object, ...]], name: str) -> str | None:
    """Return what a server says to who has not all rights that a statement needs; nothing is executed."""
    params, order = EXAMPLES[name], STATEMENTS[name].order
    values = Transformer(connection).dump_sequence([params[key] for key in order], [PyFormat.TEXT] * len(order))
    literals = [sql.SQL("null") if value is None else sql.Literal(bytes(value).decode()) for value in values]
    arguments = sql.SQL("({})").format(sql.SQL(", ").join(literals)) if literals else sql.SQL("")
    try:
        connection.execute(sql.SQL("explain execute {} {}").format(sql.Identifier(name), arguments))
    except psycopg.errors.InsufficientPrivilege as error:
        return str(error)
    return None


def test_every_statement_is_somebodys() -> None:
    assert set(EXAMPLES) - set().union(*NEEDED.values()) == set()
    assert set(NEEDED) == set(FORBIDDEN) == set(MEMBERS) - {"owner"}


@pytest.mark.parametrize("member", NEEDED)
def test_a_role_may_ask_what_it_needs_and_no_more(roles: Roles, member: str) -> None:
    with psycopg.connect(roles.url(member), autocommit=True) as connection:
        connection.execute("set plan_cache_mode = force_generic_plan")
        for name in EXAMPLES:
            prepare = sql.SQL("prepare {} as ").format(sql.Identifier(name)).as_bytes(None)
            connection.execute(prepare + STATEMENTS[name].text)
        answers = {name: refused(connection, name) for name in EXAMPLES}
    assert {name: answers[name] for name in sorted(NEEDED[member]) if answers[name] is not None} == {}
    assert sorted(name for name in FORBIDDEN[member] if answers[name] is None) == []


HIDDEN = {
    "message": {"body", "headers"},
    "outbox": {"body", "headers"},
    "dead_letter": {"body", "headers"},
    "run": {"context", "inherited", "result"},
    "child": {"result"},
    "request": {"result"},
}
SHOWN = {"run": {"launched_at", "deadlines", "own_deadline"}, "failure": {"document"}}
"""What is JSON, and no payload."""
UNSEEN = {"launched"}
"""Digests of what was launched under an id of the caller's."""


def test_whoever_only_looks_does_not_see_what_messages_hold(roles: Roles) -> None:
    with psycopg.connect(roles.url("reader"), autocommit=True) as connection:
        for table in tables().tables.values():
            held = {column.name for column in table.columns if isinstance(column.type, JSON | LargeBinary)}
            assert held == HIDDEN.get(table.name, set()) | SHOWN.get(table.name, set())
            hidden = (
                {column.name for column in table.columns} if table.name in UNSEEN else HIDDEN.get(table.name, set())
            )
            for column in table.columns:
                query = sql.SQL("select {} from scoop_outbox.{}")
                one = query.format(sql.Identifier(column.name), sql.Identifier(table.name))
                if column.name in hidden:
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        connection.execute(one)
                else:
                    connection.execute(one)


@pytest.mark.parametrize("prefix", ["", "pg_shop", "x" * 55, "a\0b"])
def test_a_prefix_that_cannot_be_is_refused(prefix: str) -> None:
    with pytest.raises(DefinitionError, match="roles cannot be named after"):
        script(DEFAULT_SCHEMA, prefix)
