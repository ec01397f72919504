"""Homes cooperate with the permissions that docs/security.md names, and with no others."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from scoop_outbox import Message, Scoop, Scope
from scoop_outbox.devservers.kafka import KafkaCluster
from scoop_outbox.devservers.rabbitmq import RabbitServer
from tests.dropin.listener import Listener
from tests.homes.homes import forge
from tests.kafka.trial import name
from tests.waiting import until

LONG = 40.0
MakeDatabase = Callable[[], str]


@dataclass(frozen=True)
class Users:
    """Broker URLs of those who work for a home."""

    setup: str
    worker: str
    relay: str


@asynccontextmanager
async def running(url: str, home: str, users: Users, sagas: Callable[[Scoop], None]) -> AsyncIterator[Scoop]:
    """Set a home up, and run its worker and its relay, each as a user of its own."""
    apps = [Scoop(home, database=url, broker=one, home=home, start="earliest") for one in (users.setup, users.worker)]
    for app in apps:
        sagas(app)
    await apps[0].apply_topology()
    relay = Scoop("relay", database=url, broker=users.relay, home=home)
    async with apps[1].running(relay=False), relay.running(worker=False):
        yield apps[1]
    for app in (*apps, relay):
        await app.close()


async def cooperate(make_database: MakeDatabase, orders: str, stock: str, users: dict[str, Users]) -> None:
    """A root in one home waits for the result of a child in the other one."""
    results: list[Any] = []

    def root(app: Scoop) -> None:
        def launch(scope: Scope, message: Message) -> None:
            scope.launch(f"{stock}.reserve", 1)

        saga = app.saga("root", on=f"{orders}.placed")
        saga.add_step("launch", launch)
        saga.add_step("look", lambda scope, message: results.extend(one.value for one in scope.results))

    def child(app: Scoop) -> None:
        def take(scope: Scope, message: Message) -> None:
            scope.set_result("taken")

        app.saga("child", on=f"{stock}.reserve").add_step("take", take)

    here = make_database()
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(running(here, orders, users[orders], root))
        await stack.enter_async_context(running(make_database(), stock, users[stock], child))
        listener = Listener(here, users[orders].worker, orders)
        await until(lambda: listener.ask("select from scoop_outbox.peer_subscription"), LONG)
        await (await app.launch(f"{orders}.placed", 1)).wait(LONG)
        assert results == ["taken"]
        # Not with everybody.
        await forge(app, "scoop.control.somebody", {})
        await until(lambda: listener.dead_letters, LONG)
        ((_, reason),) = listener.dead_letters
        assert "permit" in reason or "access to topic" in reason, reason


async def test_homes_cooperate_with_these_permissions_of_rabbitmq(
    own_rabbit: RabbitServer, make_database: MakeDatabase
) -> None:
    orders, stock = name("orders"), name("stock")

    def user(configure: str, write: str, read: str) -> str:
        made = name("user")
        own_rabbit.ctl("add_user", made, "pass")
        own_rabbit.ctl("set_permissions", "-p", "/", made, configure, write, read)
        return made

    users: dict[str, Users] = {}
    for home, other in ((orders, stock), (stock, orders)):
        own = rf"^({home}|scoop\.control\.{home})$"
        setup, worker, relay = user(own, own, r"^amq\.topic$"), user("^$", "^$", own), user("^$", r"^amq\.topic$", "^$")
        topics = rf"^({orders}\.placed|{stock}\.reserve|scoop\.homes|scoop\.control\.{other})$"
        own_rabbit.ctl("set_topic_permissions", "-p", "/", relay, "amq.topic", topics, "^$")
        users[home] = Users(*(_as(own_rabbit.url, one) for one in (setup, worker, relay)))

    await cooperate(make_database, orders, stock, users)


def _as(url: str, user: str) -> str:
    return url.replace(url[7 : url.index("@")], f"{user}:pass")


async def test_homes_cooperate_with_these_permissions_of_kafka(
    guarded_kafka: KafkaCluster, make_database: MakeDatabase
) -> None:
    orders, stock = name("orders"), name("stock")
    cluster = guarded_kafka
    url = f"kafka://{cluster.user}:{cluster.password}@{cluster.bootstrap}?ssl.ca.location={cluster.ca_file}"
    # One user is all of them. Whoever is named on a resource may do what was granted there, and nothing else.
    granted = [(ResourceType.TOPIC, "scoop.homes", one) for one in (AclOperation.READ, AclOperation.WRITE)]
    granted += [(ResourceType.TOPIC, "scoop.homes", AclOperation.CREATE)]
    for home in (orders, stock):
        control = f"scoop.control.{home}"
        granted += [
            (ResourceType.TOPIC, control, AclOperation.READ),
            (ResourceType.TOPIC, control, AclOperation.WRITE),
            (ResourceType.TOPIC, control, AclOperation.CREATE),
            (ResourceType.GROUP, control, AclOperation.READ),
        ]
    allow(cluster, [*granted], f"User:{cluster.user}")
    allow(cluster, [(ResourceType.TOPIC, "scoop.control.somebody", AclOperation.WRITE)], "User:somebody")

    await cooperate(make_database, orders, stock, dict.fromkeys((orders, stock), Users(url, url, url)))


def allow(cluster: KafkaCluster, granted: list[tuple[Any, str, Any]], principal: str) -> None:
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{cluster.nodes[0].ports.internal}"})
    bindings = [
        AclBinding(kind, what, ResourcePatternType.LITERAL, principal, "*", operation, AclPermissionType.ALLOW)
        for kind, what, operation in granted
    ]
    for future in admin.create_acls(bindings).values():
        future.result(10)
