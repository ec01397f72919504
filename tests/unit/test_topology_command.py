"""`scoop-outbox topology`: what it prints and its exit code, with a broker that is made up."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from scoop_outbox import DefinitionError, Scoop, Topic
from scoop_outbox.broker import plugins
from scoop_outbox.broker.protocol import Resource, Subscription
from scoop_outbox.cli import main
from scoop_outbox.errors import BrokerError

APP = """
from scoop_outbox import Scoop
app = Scoop("shop", group="shop-group", broker_settings={"a": "1", "b": "1"})
saga = app.saga("place-order", on="orders")
@saga.step
def only(scope, message): ...
publisher = Scoop("publisher")
"""


class Made:
    """A broker that has `topic.orders`, cannot be asked for bindings, and notes what it is asked."""

    def __init__(self) -> None:
        self.url = ""
        self.settings: dict[str, object] = {}
        self.asked: list[tuple[list[str], Subscription | None, bool]] = []
        self.there = {"orders"}
        self.error: str | None = None

    most_bytes = None

    def published_as(self, topic: str) -> str:
        return topic

    def names(self, topic: str) -> Sequence[str]:
        return ()

    def pattern(self, topic: str) -> str | None:
        return None

    async def topology(
        self, topics: Sequence[str], subscription: Subscription | None, *, create: bool
    ) -> list[Resource]:
        self.asked.append((list(topics), subscription, create))
        if self.error is not None:
            raise BrokerError(self.error)
        received = () if subscription is None else subscription.topics
        items = [Resource(f"topic {topic}", topic in self.there) for topic in dict.fromkeys((*topics, *received))]
        if create:
            self.there.update(topics, received)
        return [*items, *(Resource(f"binding for {topic}", None) for topic in received)]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Made:
    broker = Made()

    def load(url: str, settings: Mapping[str, object] | None = None) -> Any:
        broker.url, broker.settings = url, dict(settings or {})
        return broker

    monkeypatch.setattr(plugins, "load", load)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("SCOOP_OUTBOX_DATABASE", raising=False)
    monkeypatch.delenv("SCOOP_OUTBOX_BROKER", raising=False)
    monkeypatch.delenv("SCOOP_OUTBOX_HOME", raising=False)
    monkeypatch.delitem(sys.modules, "shop_of_topology", raising=False)
    (tmp_path / "shop_of_topology.py").write_text(APP)
    return broker


def topology(*arguments: str, code: int = 0) -> list[str]:
    """Run the command, without a database, and return the lines that it prints."""
    result = CliRunner().invoke(main, ("topology", *arguments))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output.splitlines()


@dataclass
class Invoice:
    number: int


AT = ("shop_of_topology:app", "--broker", "made://here")


def test_what_is_missing_is_shown_and_created_once(made: Made) -> None:
    wanted = (*AT, "--topic", "invoices", "--topic", "orders")

    assert topology("print", *wanted, code=3) == [
        "missing  topic invoices",
        "exists   topic orders",
        "unknown  binding for orders",
        f"1 missing; to create: scoop-outbox topology apply {' '.join(wanted)}",
    ]
    assert topology("apply", *wanted) == [
        "created  topic invoices",
        "exists   topic orders",
        "ensured  binding for orders",
    ]
    assert topology("print", *wanted) == topology("print", *wanted)
    assert "missing" not in "".join(topology("print", *wanted))
    assert [create for _, _, create in made.asked][:2] == [False, True]


def hint(*arguments: str) -> str:
    """Return the command that `print` says would create what is missing, without its beginning."""
    *_, line = topology("print", "shop_of_topology:app", *arguments, "--topic", "invoices", code=3)
    assert line.startswith("1 missing; to create")
    return line


def test_the_hint_repeats_what_was_given_and_creates_it(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "kafka settings"
    file.write_text("sasl.password=s3cr3t")
    options = (
        "--broker",
        "made://here:1/",
        "--group",
        "a b",
        "--broker-setting",
        "c=3",
        "--broker-settings",
        str(file),
    )

    line = hint(*options)

    assert line == (
        "1 missing; to create: scoop-outbox topology apply shop_of_topology:app --broker made://here:1/ --group 'a b' "
        f"--broker-setting c=3 --broker-settings '{file}' --topic invoices"
    )
    topology(*shlex.split(line.partition("scoop-outbox topology ")[2]))
    assert made.asked[-1] == (["invoices"], Subscription("shop", "a b", ("orders",)), True)
    assert made.settings == {"a": "1", "b": "1", "c": "3", "sasl.password": "s3cr3t"}


def test_what_the_environment_says_is_not_repeated(made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text("a=1")
    monkeypatch.setenv("SCOOP_OUTBOX_BROKER", "made://user:s3cr3t@here")
    monkeypatch.setenv("SCOOP_OUTBOX_BROKER_SETTINGS", str(file))

    assert hint().endswith("topology apply shop_of_topology:app --topic invoices")


@pytest.mark.parametrize(
    "given, shown",
    [
        (("--broker", "made://user:s3cr3t@here"), "--broker made://user:...@here"),
        (("--broker", "made://user:s3/cr?3t@x@here,there"), "--broker made://user:...@here,there"),
        (("--broker", "made://here?a=1&sasl.password=s3cr3t"), "--broker 'made://here?a=1&sasl.password=...'"),
        (("--broker", "made://here", "--broker-setting", "sasl.password=s3cr3t"), "--broker-setting sasl.password=..."),
        (
            ("--broker", "made://here", "--broker-setting", " ssl.key.pem = s3cr3t"),
            "--broker-setting ' ssl.key.pem =...'",
        ),
    ],
)
def test_the_hint_holds_no_secret(made: Made, given: tuple[str, ...], shown: str) -> None:
    line = hint(*given)

    assert "1 missing; to create, with what ... stands for: " in line
    assert f" {shown} --topic invoices" in line
    assert "s3" not in line


def test_what_sagas_listen_on_is_received_by_the_group_and_what_is_named_is_only_published(made: Made) -> None:
    topology("apply", *AT, "--topic", "invoices")

    assert made.asked == [(["invoices"], Subscription("shop", "shop-group", ("orders",)), True)]


def test_the_group_of_the_command_line_wins(made: Made) -> None:
    topology("apply", *AT, "--group", "other-group")

    assert made.asked == [([], Subscription("shop", "other-group", ("orders",)), True)]


CONTROL = Subscription("home north", "scoop.control.north", ("scoop.control.north", "scoop.homes"), "earliest")


def test_a_home_that_is_named_receives_what_others_say(made: Made) -> None:
    topology("apply", *AT, "--home-name", "north")

    assert made.asked == [
        ([], Subscription("shop", "shop-group", ("orders",)), True),
        (list(CONTROL.topics), CONTROL, True),
    ]


def test_the_hint_repeats_the_name_of_the_home(made: Made) -> None:
    *_, line = topology("print", *AT, "--home-name", "north", code=3)

    assert line == f"2 missing; to create: scoop-outbox topology apply {' '.join(AT)} --home-name north"


def test_the_environment_names_the_home_and_the_hint_does_not_repeat_it(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOOP_OUTBOX_HOME", "north")
    *_, line = topology("print", *AT, code=3)

    assert line == f"2 missing; to create: scoop-outbox topology apply {' '.join(AT)}"
    assert made.asked[-1][1] == CONTROL


def test_a_name_that_no_home_can_have_is_an_error_of_one_line(made: Made) -> None:
    (line,) = topology("print", *AT, "--home-name", "a b", code=1)

    assert line.startswith("Error: the name of a home has 1 to 100 letters")


def test_settings_of_the_command_line_come_on_top_of_those_declared(made: Made) -> None:
    topology("apply", *AT, "--broker-setting", "b=2=2", "--broker-setting", "c=3")

    assert made.url == "made://here"
    assert made.settings == {"a": "1", "b": "2=2", "c": "3"}


def test_settings_reach_a_broker_that_is_declared(made: Made) -> None:
    app = Scoop("shop", broker="made://declared", broker_settings={"a": "1"})

    app.configure(broker_settings={"b": "2"})

    assert (made.url, made.settings) == ("made://declared", {"a": "1", "b": "2"})


@pytest.mark.parametrize("setting", ["s3cr3t", "=s3cr3t"])
def test_a_setting_has_a_name_and_a_value(made: Made, setting: str) -> None:
    *_, line = topology("print", *AT, "--broker-setting", setting, code=2)

    assert line == "Error: --broker-setting is NAME=VALUE, as in --broker-setting sasl.mechanism=PLAIN"
    assert made.asked == []


@pytest.mark.parametrize("command", ["print", "apply"])
def test_the_built_in_broker_needs_nothing(made: Made, command: str) -> None:
    (line,) = topology(command, "shop_of_topology:app", "--topic", "invoices")

    assert line == "there is nothing to create: the built-in broker needs only the database"
    assert made.asked == []


@pytest.mark.parametrize("command", ["print", "apply"])
def test_a_service_without_sagas_needs_what_it_publishes_on(made: Made, command: str) -> None:
    (line,) = topology(command, "shop_of_topology:publisher", "--broker", "made://here")
    assert line == "there is nothing to create: service 'publisher' has no sagas, and no --topic is given"
    assert made.asked == []

    topology("apply", "shop_of_topology:publisher", "--broker", "made://here", "--topic", "invoices")
    assert made.asked == [(["invoices"], None, True)]


@pytest.mark.parametrize("command", ["print", "apply"])
def test_what_the_broker_says_is_an_error_of_one_line(made: Made, command: str) -> None:
    made.error = "it is not permitted to create the topic orders: ask for it"

    assert topology(command, *AT, code=1) == [f"Error: {made.error}"]


@pytest.mark.parametrize("command", ["print", "apply"])
def test_a_topic_has_a_name_that_can_be_used(made: Made, command: str) -> None:
    (line,) = topology(command, *AT, "--topic", "x" * 1000, code=1)

    assert line.startswith("Error: the topic name")
    assert made.asked == []


async def test_code_can_do_the_same(made: Made) -> None:
    app = Scoop("shop", broker="made://here")
    app.saga("place-order", on="orders").add_step("only", lambda _, __: None)

    before = await app.topology("invoices")
    applied = await app.apply_topology(Topic("invoices", Invoice))
    after = await app.topology("invoices")

    assert (
        before
        == applied
        == [
            Resource("topic invoices", exists=False),
            Resource("topic orders", exists=True),
            Resource("binding for orders", exists=None),
        ]
    )
    assert [item.exists for item in after] == [True, True, None]
    assert await Scoop("shop").apply_topology("invoices") == []
    with pytest.raises(DefinitionError, match="topic"):
        await app.topology("")
