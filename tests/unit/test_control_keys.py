"""Where control keys come from, and what is signed with them on its way to a broker."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from scoop_outbox import DefinitionError, Scoop
from scoop_outbox.app import service_of
from scoop_outbox.broker.protocol import ACKNOWLEDGED, Receipt
from scoop_outbox.cli import main
from scoop_outbox.client.control_keys import control_keys
from scoop_outbox.daemon.relay.signing import SigningPublisher
from scoop_outbox.message import Envelope
from scoop_outbox.wire.signature import ControlKeys

SECRET = "5ec2e7" * 8
FIRST, SECOND = f"first:{SECRET}", f"second:{'0dd5ec' * 8}"


def ids(keys: ControlKeys | None) -> list[str]:
    return [] if keys is None else [key.id for key in keys.keys]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without keys."""
    for name in ("SCOOP_OUTBOX_CONTROL_KEYS", "SCOOP_OUTBOX_CONTROL_KEYS_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_a_process_has_the_keys_of_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert control_keys(None) is None
    monkeypatch.setenv("SCOOP_OUTBOX_CONTROL_KEYS", "")
    assert control_keys(None) is None
    monkeypatch.setenv("SCOOP_OUTBOX_CONTROL_KEYS", f"{FIRST},{SECOND}")
    assert ids(control_keys(None)) == ["first", "second"]
    assert ids(service_of(Scoop("shop")).servers.control_keys) == ["first", "second"]
    # What a program says wins.
    assert ids(service_of(Scoop("shop", control_keys=[SECOND])).servers.control_keys) == ["second"]
    assert service_of(Scoop("shop", control_keys=[])).servers.control_keys is None

    file = tmp_path / "keys"
    file.write_text(f"# of 2027\n{SECOND}\n{FIRST}\n", "utf-8")
    monkeypatch.setenv("SCOOP_OUTBOX_CONTROL_KEYS_FILE", str(file))
    with pytest.raises(DefinitionError, match="both SCOOP_OUTBOX_CONTROL_KEYS and SCOOP_OUTBOX_CONTROL_KEYS_FILE"):
        Scoop("shop")
    monkeypatch.delenv("SCOOP_OUTBOX_CONTROL_KEYS")
    assert ids(control_keys(None)) == ["second", "first"]


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "cannot be read: No such file or directory"),
        (b" \n", "is empty"),
        (b"\xff\xfe\x00", "entry 1 is not id:secret"),
        (SECRET.encode(), "entry 1 is not id:secret"),
    ],
)
def test_a_file_that_holds_no_keys_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, says: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("SCOOP_OUTBOX_CONTROL_KEYS_FILE", str(file))
    with pytest.raises(DefinitionError, match=re.escape(says)) as refused:
        Scoop("shop")
    assert SECRET not in str(refused.value)


def test_a_relay_that_is_started_with_a_wrong_key_says_so_and_does_not_show_it() -> None:
    environment = {"SCOOP_OUTBOX_CONTROL_KEYS": SECRET}
    ended = CliRunner().invoke(main, ["relay", "--database", "postgresql://nowhere/x"], env=environment)
    assert ended.exit_code == 1
    assert "control keys: entry 1 is not id:secret" in ended.output
    assert SECRET[:12] not in ended.output


class Sent:
    """A publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.batch: list[Envelope] = []

    async def publish(self, batch: Sequence[Envelope]) -> Sequence[Receipt]:
        self.batch += batch
        return [ACKNOWLEDGED] * len(batch)

    async def probe(self) -> str | None:
        return "away"

    async def close(self) -> None:
        self.batch.clear()


async def test_what_other_homes_are_to_believe_is_signed_and_nothing_else() -> None:
    keys, sent = control_keys([FIRST]), Sent()
    assert keys is not None
    publisher = SigningPublisher(sent, keys, "scoop.", lambda topic: f"amq.topic/{topic}")
    ours = {"scoop-home": "h", "scoop-expects": "[]", "scoop-reply-to": "scoop.control.shop"}
    batch = [
        Envelope("1", "orders", None, b"1", "application/json", {"scoop-home": "h", "scoop-lineage": "l"}),
        Envelope("2", "orders", "k", b"2", "application/json", ours),
        Envelope("3", "scoop.control.stock", "k", b"3", "application/json", {"scoop-home": "h"}),
        Envelope("4", "scoop.homes", None, b"4", "application/json", {"scoop-home": "h"}),
        Envelope("5", "scoop.homes.other", None, b"5", "application/json", {}),
        Envelope("6", "orders", None, b"6", "application/json", {**ours, "scoop-context": "\ud800"}),
    ]

    assert await publisher.publish(batch) == [ACKNOWLEDGED] * 6
    assert [one._replace(headers={}) for one in sent.batch] == [one._replace(headers={}) for one in batch]
    assert [one.id for one in sent.batch if "scoop-signature" in one.headers] == ["2", "3", "4", "6"]
    assert [sent.batch[place].headers for place in (0, 4)] == [batch[place].headers for place in (0, 4)]
    assert "scoop-signature" not in ours
    for one in sent.batch[1:4]:
        on_the_wire = {**one.headers, "scoop-id": one.id, "scoop-topic": f"amq.topic/{one.topic}"}
        assert keys.problem(on_the_wire, one.body) is None
        assert keys.problem({**on_the_wire, "scoop-topic": one.topic}, one.body) is not None
    assert await publisher.probe() == "away"
    await publisher.close()
    assert sent.batch == []
