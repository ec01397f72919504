"""Every benchmark runs, with the smallest sizes: what it measures then says nothing."""

import pytest
from rich.console import Console

from benchmarks import brokers
from benchmarks.__main__ import BENCHMARKS
from benchmarks.server import Bench

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(300)]

VIA_BROKER = {"end-to-end", "drain", "steady", "intake", "broker-hop", "homes", "memory"}
"""They measure over Kafka and RabbitMQ."""


async def run(name: str, admin: str) -> None:
    for table in await BENCHMARKS[name](Bench(admin, runs=1, quick=True, own=True, smoke=True)):
        assert table.rows, table.notes
        table.show(Console(quiet=True))
        assert [line for line in table.markdown() if line.startswith("| ")]


@pytest.mark.parametrize("name", sorted(BENCHMARKS.keys() - VIA_BROKER))
async def test_a_benchmark_runs(name: str, postgres_url: str) -> None:
    await run(name, postgres_url)


@pytest.mark.parametrize("name", sorted(VIA_BROKER))
async def test_a_benchmark_over_brokers_runs(
    name: str, postgres_url: str, kafka_url: str, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(brokers.RUNNING, "kafka", kafka_url)
    monkeypatch.setitem(brokers.RUNNING, "amqp", rabbitmq_url)
    await run(name, postgres_url)
