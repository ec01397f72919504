"""The whole work of services, relays, launching programs and operators, each with the rights of its role only."""

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from scoop_outbox import (
    Answer,
    ArchivedHierarchy,
    AsyncRuns,
    AsyncScope,
    DatabaseError,
    DeadLetters,
    DistributedError,
    Handle,
    Handlers,
    Message,
    Pruning,
    PruningOptions,
    RunState,
    Scoop,
    Scope,
)
from scoop_outbox.cli import main
from scoop_outbox.core.plans.dead_letters import ReplayStatus
from scoop_outbox.core.plans.handlers import ForgetStatus
from scoop_outbox.daemon import maintenance
from scoop_outbox.operations.homes import Homes
from scoop_outbox.store.roles import script
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.store.url import parse_url
from scoop_outbox.wire import control
from tests.homes.ear import Child, Ear, Peer, delivered, failure
from tests.integration.roles import Roles, new_roles
from tests.integration.test_migrations import empty_url
from tests.waiting import until

LONG = 30.0

__all__ = ["empty_url"]


@pytest.fixture
def roles(database_url: str) -> Iterator[Roles]:
    """The roles of a fresh database."""
    with new_roles(database_url) as made:
        made.apply()
        yield made


class Shop:
    """A service whose saga launches, waits, and then fails or hangs if its message says so."""

    def __init__(self, url: str) -> None:
        self.app = Scoop("shop", database=url)
        self.did: list[str] = []
        self.broken = True
        order = self.app.saga("order", on="orders")
        stock = self.app.saga("stock", on="stock", ordered="key")
        self.app.external("approval", on="approvals")

        async def begin(scope: Scope, message: Message) -> None:
            scope.launch("stock", message.payload, key="k", timeout=timedelta(minutes=5))
            if message.payload == "approve":
                scope.launch("approvals", 1)

        async def undo(scope: Scope, message: Message, error: Exception) -> None:
            self.did.append("undone")
            if message.payload == "stuck" and self.broken:
                raise ValueError("cannot be undone")

        async def end(scope: AsyncScope, message: Message) -> None:
            if message.payload in {"fails", "stuck"}:
                raise ValueError("after all")
            while message.payload == "hangs":
                await scope.checkpoint()
                await asyncio.sleep(0.01)
            scope.set_result("done")

        async def take(scope: AsyncScope, message: Message) -> None:
            await scope.connection.execute("select 1")
            scope.set_result("taken")

        order.add_step("begin", begin, compensate=undo)
        order.add_step("end", end)
        stock.add_step("take", take, compensate=lambda scope, message, error: self.did.append("put back"))


def ended(app: Scoop, handle: Handle) -> Callable[[], Awaitable[bool]]:
    """Whether everything below a message has ended, as a program sees it."""

    async def has_ended() -> bool:
        runs = (await app.status(handle.id)).runs
        return bool(runs) and all(run.state.ended for run in runs)

    return has_ended


async def test_a_service_a_relay_and_a_program_that_launches_have_what_they_need(
    roles: Roles, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "EVERY", 0.05)
    shop = Shop(roles.url("worker"))
    relay = Scoop("relay", database=roles.url("relay", "intake"))
    web_url = roles.url("launcher")
    web = Scoop("web", database=web_url)
    engine = create_async_engine(parse_url(web_url))
    async with shop.app.running(relay=False), relay.running(worker=False) as daemons:
        assert await (await web.launch("orders", "fine")).wait(LONG) == "done"
        async with AsyncSession(engine) as session, session.begin():
            joined = await web.launch("orders", "fine", session=session)
        assert await joined.wait(LONG) == "done"
        sync = await asyncio.to_thread(web.launch_sync, "orders", "fine", id=uuid4())
        assert await sync.wait(LONG) == "done"

        failing = await web.launch("orders", "fails", id=uuid4())
        with pytest.raises(DistributedError, match="after all"):
            await failing.wait(LONG)
        assert sorted(shop.did) == ["put back", "undone"]
        assert {run.state for run in (await web.status(failing.id)).runs} == {RunState.ROLLED_BACK}

        hanging = await web.launch("orders", "hangs")
        with pytest.raises(TimeoutError, match="order"):
            await hanging.wait(0.5)
        # A program that launches asks for nothing else.
        with pytest.raises(DatabaseError, match="permission denied for table"):
            await web.cancel(hanging.id, reason="no")
        assert await shop.app.cancel(hanging.id, reason="enough") is Answer.ACCEPTED
        await until(ended(web, hanging), LONG)
        # Nor does a relay prune that is not to; it says so once, and goes on.
        await until(lambda: daemons.maintenance is not None and daemons.maintenance.looks >= 3, LONG)
    await engine.dispose()
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    (said,) = [one for one in told if "permission denied" in one]
    assert said.startswith(
        "maintenance: not permitted (this relay prunes nothing: InsufficientPrivilege 42501: permission"
    )
    for one in (shop.app, relay, web):
        await one.close()


async def test_operators_mend_and_undo_and_readers_look_on(roles: Roles) -> None:
    shop = Shop(roles.url("worker"))
    app = shop.app
    async with (
        app.running(relay=False),
        relaying(roles),
        AsyncRuns(roles.url("reader")) as reader,
        AsyncRuns(roles.url("operator")) as operator,
    ):
        fine = await app.launch("orders", "fine")
        await fine.wait(LONG)
        stuck = await app.launch("orders", "stuck")
        await until(lambda: reader.list(stuck=True, saga="order"), LONG)
        (listed,) = await reader.list(stuck=True, saga="order")
        assert RunState.ROLLBACK_FAILED in {one.state for one in (await reader.show(stuck.id)).runs}
        assert (await reader.explain(stuck.id)).waiting
        with pytest.raises(DatabaseError, match="permission denied for table"):
            await reader.retry(listed.id, source="anna")

        assert await operator.retry(listed.id, source="anna") is Answer.ACCEPTED
        await until(lambda: reader.list(stuck=True, saga="order"), LONG)
        assert await operator.skip(listed.id, source="anna", note="by hand") is Answer.ACCEPTED
        await until(ended(app, stuck), LONG)
        shown = await reader.show(stuck.id)
        assert {"retry", "skip"} == {action.kind for run in shown.runs for action in run.actions}

        assert (await operator.rollback(fine.id, reason="fraud", source="anna")).answer is Answer.ACCEPTED
        await until(ended(app, fine), LONG)
        hanging = await app.launch("orders", "hangs")
        await until(lambda: reader.list(saga="order", states=["running"]), LONG)
        assert (await reader.explain(hanging.id)).waiting
        assert await operator.cancel(hanging.id, reason="enough", source="anna") is Answer.ACCEPTED
        await until(ended(app, hanging), LONG)

        outside = await app.launch("orders", "approve")
        await until(lambda: reader.list(saga="approval"), LONG)
        (work,) = await reader.list(saga="approval")
        assert await operator.complete(work.id, "approval", result=1, source="anna") is Answer.ACCEPTED
        assert await outside.wait(LONG) == "done"
    await app.close()


async def test_operators_take_in_what_other_homes_have_said_and_say_that_a_home_was_restored(
    roles: Roles, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear, there, theirs, ours = Ear(database_url), Peer(), Child(uuid4()), Child(uuid4())
    await ear.take_in(there.launched(theirs))
    ear.execute("update run set state = 'committed', result = '7'")
    ear.execute(
        "insert into child (message_id, service, saga, run_id, seq, ordinal, home) values (%s, %s, %s, %s, 1, 1, %s)",
        *(*ours, uuid4(), there.sender.id),
    )
    reason = failure("why")
    listed = [{"topic": "t", "service": "s", "saga": "s"}]
    said = [
        there.says("subscriptions", revision=1, subscriptions=listed, known={}),
        there.says("confirmed", revision=9),
        there.orders("where", theirs.said(1), Child(uuid4()).said(1)),
        there.orders("cancel", theirs.said(1), Child(uuid4()).said(0), reason=reason),
        there.orders("roll_back", theirs.said(1), reason=reason),
        there.orders("release", theirs.said(1)),
        there.news(ours.said(1, state="started")),
    ]
    newer = [json.dumps({**json.loads(one.envelope.body), "version": 2}).encode() for one in said]
    await ear.hear(*map(delivered, newer))
    monkeypatch.setattr(control, "VERSION", 2)
    with DeadLetters(roles.url("operator")) as letters:
        answers = [letters.replay(number) for number in list(letters.numbers())]
    assert [(one.status, one.reason) for one in answers] == [
        (ReplayStatus.REPLAYED, "taken in as said by another home")
    ] * len(said)
    assert ear.ask("select state from run") == [("rolling_back",)]
    with Homes(roles.url("operator")) as homes:
        assert homes.move() == 1
    await ear.close()


async def test_operators_see_to_handlers_and_dead_letters_and_a_pruner_prunes(roles: Roles) -> None:
    shop = Shop(roles.url("worker"))
    async with shop.app.running(relay=False), relaying(roles):
        await (await shop.app.launch("orders", "fine")).wait(LONG)
    await shop.app.close()
    operator, reader = roles.url("operator"), roles.url("reader")

    with Handlers(reader) as looked, Handlers(operator) as handlers:
        assert {one.saga for one in looked.read()} == {"order", "stock", "approval"}
        assert handlers.forget("shop", "approval", force=True).status is ForgetStatus.FORGOTTEN

    with psycopg.connect(roles.admin_url) as connection:
        connection.execute(
            "insert into scoop_outbox.dead_letter (message_id, topic, body, content_type, headers, origin, reason)"
            " select gen_random_uuid(), 'orders', '1', 'application/json', '{}', 'relay', 'why'"
            " from generate_series(1, 2)"
        )
        for table, column in [("message", "created_at"), ("run", "created_at"), ("run", "ended_at")]:
            older = sql.SQL("update scoop_outbox.{0} set {1} = {1} - interval '1 hour'")
            connection.execute(older.format(sql.Identifier(table), sql.Identifier(column)))
    with DeadLetters(operator) as letters, DeadLetters(reader) as looked_at:
        first, second = letters.numbers()
        assert letters.read(first) is not None
        assert letters.replay(first).status is ReplayStatus.REPLAYED
        assert letters.drop([second]) == [second]
        with pytest.raises(DatabaseError, match="permission denied for table dead_letter"):
            looked_at.page()

    options = PruningOptions(timedelta(minutes=5), retain_payload=timedelta(minutes=1))
    archived: list[ArchivedHierarchy] = []
    with Pruning(roles.url("pruner")) as pruning, Pruning(operator) as refused:
        assert pruning.prune(options, archived.extend).hierarchies == len(archived) == 1
        with pytest.raises(DatabaseError, match="permission denied for table"):
            refused.prune(options)


def relaying(roles: Roles) -> AbstractAsyncContextManager[object]:
    """A relay of the built-in broker, which prunes, too."""
    relay = Scoop("relay", database=roles.url("relay", "intake", "pruner"))
    return relay.running(worker=False, retention=timedelta(days=1))


@pytest.mark.parametrize("schema", [DEFAULT_SCHEMA, "o'clock 50% %(off)s"])
def test_the_script_may_come_first_and_a_migration_grants_what_is_new(empty_url: str, schema: str) -> None:
    with new_roles(empty_url, schema) as roles:
        roles.apply()  # the schema is made, and belongs to the owner
        deploy = roles.url("owner")
        arguments = ["migrate", "--database", deploy, "--schema", schema, "--roles", roles.prefix]
        migrated = CliRunner().invoke(main, arguments)
        assert migrated.exit_code == 0, migrated.output
        granted = grants(roles)
        assert {owner for owner, *_ in granted} == {f"{roles.prefix}_owner"}
        roles.apply()
        roles.apply()
        assert grants(roles) == granted

        # As a migration does: a table, a column, and one that is made anew.
        names = sql.Identifier(f"{roles.prefix}_owner"), sql.Identifier(schema)
        with psycopg.connect(deploy) as connection:
            for change in (
                "set role {0}",
                "alter table {1}.message add column more int",
                "create table {1}.anew (like {1}.step)",
                "drop table {1}.step",
                "alter table {1}.anew rename to step",
            ):
                connection.execute(sql.SQL(change).format(*names))
        assert grants(roles) != granted
        assert CliRunner().invoke(main, arguments).exit_code == 0
        reader = f"{roles.prefix}_reader"
        new = {(*row[1:3], row[-1]) for row in grants(roles) - granted if row[3].strip('"') == reader}
        assert new == {("message", "more", "SELECT")}


def grants(roles: Roles) -> set[tuple[Any, ...]]:
    """Everything that anybody may do with tables of the schema, and whose they are."""
    with psycopg.connect(roles.admin_url) as connection:
        rows = connection.execute(
            """
            select c.relowner::regrole::text, c.relname, null, a.grantee::regrole::text, a.privilege_type
            from pg_class c cross join aclexplode(c.relacl) a
            where c.relnamespace = quote_ident(%(schema)s)::regnamespace and c.relkind = 'r'
            union all
            select c.relowner::regrole::text, c.relname, t.attname, a.grantee::regrole::text, a.privilege_type
            from pg_class c join pg_attribute t on t.attrelid = c.oid cross join aclexplode(t.attacl) a
            where c.relnamespace = quote_ident(%(schema)s)::regnamespace and c.relkind = 'r'""",
            {"schema": roles.schema},
        ).fetchall()
    return {(owner.strip('"'), *rest) for owner, *rest in rows}


def test_tables_that_are_there_change_their_owner_and_whoever_is_nobody_is_told(
    roles: Roles, database_url: str
) -> None:
    runner = CliRunner()
    nobody = runner.invoke(main, ["migrate", "--database", roles.url(), "--roles", roles.prefix])
    assert nobody.exit_code == 1
    assert "permission denied to set role" in nobody.output
    missing = runner.invoke(main, ["migrate", "--database", database_url, "--roles", "nobody_here"])
    assert missing.exit_code == 1
    assert "there is no role nobody_here_owner: an administrator" in missing.output
    assert runner.invoke(main, ["migrate", "--database", roles.url("owner")]).exit_code == 0


def test_an_administrator_need_not_be_a_superuser(empty_url: str) -> None:
    name, password = f"t{secrets.token_hex(4)}_admin", secrets.token_hex(8)
    role, database = sql.Identifier(name), sql.Identifier(str(make_url(empty_url).database))
    with psycopg.connect(empty_url, autocommit=True) as connection:
        create = sql.SQL("create role {} login createrole password {}")
        connection.execute(create.format(role, sql.Literal(password)))
        connection.execute(sql.SQL("alter database {} owner to {}").format(database, role))
    admin_url = make_url(empty_url).set(username=name, password=password).render_as_string(hide_password=False)
    try:
        with new_roles(empty_url) as roles:
            notices: list[str] = []
            with psycopg.connect(admin_url, autocommit=True) as connection:
                connection.add_notice_handler(lambda said: notices.append(str(said.message_primary)))
                for _ in range(2):
                    connection.execute(script(roles.schema, roles.prefix).encode())
            # Before Postgres 16 he may grant that, too.
            assert {notice.split(" failed")[0] for notice in notices} <= {
                f"grant pg_read_all_stats to {roles.prefix}_operator"
            }
            arguments = ["migrate", "--database", admin_url, "--roles", roles.prefix]
            assert CliRunner().invoke(main, arguments).exit_code == 0
    finally:
        with psycopg.connect(empty_url, autocommit=True) as connection:
            for statement in ("reassign owned by {} to current_user", "drop owned by {}", "drop role {}"):
                connection.execute(sql.SQL(statement).format(role))


def test_the_command_prints_what_is_executed() -> None:
    printed = CliRunner().invoke(main, ["roles", "print", "--schema", "o'clock", "--prefix", "shop"])
    assert printed.exit_code == 0
    assert "set_config('scoop_outbox.schema', 'o''clock', true), set_config('scoop_outbox.roles', 'shop', true)" in (
        printed.output
    )
    assert CliRunner().invoke(main, ["roles", "print", "--schema", "o'clock"]).output.count("'o''clock'") == 2
