"""The contract, with the adapter that docs/writing-an-adapter.md shows, installed as any other."""

import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from scoop_outbox.broker.protocol import Feature
from scoop_outbox.testing.contract import BrokerContract, Harness, Power, ServiceContract
from scoop_outbox.testing.contract.selection import summary
from scoop_outbox.wire import headers as wire
from tests.contract.memory_broker import SERVERS

FEATURES = frozenset({Feature.KNOWS_TOPICS, Feature.LIMITS_SIZE})
POWERS = frozenset({Power.FOREIGN})
DOCUMENT = Path(__file__).parents[2] / "docs" / "writing-an-adapter.md"


class MemoryHarness(Harness):
    async def publish_foreign(self, topic: str, key: bytes | None, body: bytes, headers: Mapping[str, str]) -> None:
        assert self.url is not None
        SERVERS[self.url].put(topic, key, body, "", {name: wire.octets(value) for name, value in headers.items()})


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    distribution = tmp_path / "scoop_outbox_memory-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: scoop-outbox-memory\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text(
        "[scoop_outbox.brokers]\nmemory = tests.contract.memory_broker:open_broker\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    url = f"memory://{secrets.token_hex(6)}"
    yield MemoryHarness(url)
    SERVERS.pop(url, None)


class TestBroker(BrokerContract):
    features = FEATURES
    powers = POWERS

    @pytest.fixture
    def harness(self, memory: Harness) -> Harness:
        return memory


class TestServices(ServiceContract):
    features = FEATURES
    powers = POWERS

    @pytest.fixture
    def harness(self, memory: Harness) -> Harness:
        return memory


def test_what_is_not_declared_is_left_out_and_said() -> None:
    left_out = [name for name, test in vars(TestBroker).items() if name.startswith("test_") and test is None]

    assert "test_messages_of_a_key_come_in_order" in left_out
    assert "test_a_broker_that_is_frozen_and_resumed" in left_out
    assert "test_bodies_come_byte_for_byte" not in left_out
    assert list(TestBroker.left_out) == sorted(left_out)
    assert BrokerContract.test_messages_of_a_key_come_in_order is not None, "other contracts have it"
    line = "leaves out test_order_is_kept_around_a_message_that_fails_for_good: no Feature.ORDER_PER_KEY"
    assert f"{__name__}.TestBroker {line}" in summary(TestBroker)


def test_the_document_shows_this_adapter() -> None:
    shown = re.findall(r"```python\n(# memory_broker\.py\n.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)

    assert shown == ["# memory_broker.py\n" + (Path(__file__).parent / "memory_broker.py").read_text("utf-8")]
