"""What the README shows of Kafka and RabbitMQ: every line is run, on brokers that have nothing yet."""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from scoop_outbox.devservers.kafka import start_kafka
from scoop_outbox.devservers.rabbitmq import RabbitServer
from tests.docs.markdown import ROOT, blocks, programs
from tests.waiting import until_blocking

README = ROOT / "README.md"
(SHOP,) = programs(README)


def lines_with(scheme: str) -> list[str]:
    """The commands of the block that sets a URL of this scheme."""
    (block,) = [content for _, content in blocks(README, "sh") if f"SCOOP_OUTBOX_BROKER={scheme}://" in content]
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


def follow(scheme: str, url: str, database_url: str, folder: Path) -> str:
    """Do what the README says, in its order, until the order is done; return what the workers have printed."""
    (folder / SHOP.file).write_text(SHOP.code, encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {
        "PATH": path,
        "SCOOP_OUTBOX_DATABASE": database_url,
        "SCOOP_OUTBOX_BROKER": url,
        "PYTHONUNBUFFERED": "1",
    }

    def committed() -> bool:
        with psycopg.connect(database_url) as connection:
            found = connection.execute("select state from scoop_outbox.run").fetchall()
        return [state for (state,) in found] == ["committed"] * 2

    with ExitStack() as stack, (folder / "log").open("w") as log:
        options = {"cwd": folder, "env": environment, "stdout": log, "stderr": subprocess.STDOUT}
        served: list[subprocess.Popen[bytes]] = []

        def ready() -> bool:
            return (folder / "log").read_text().count("process: ready (") == len(served)

        for line in lines_with(scheme):
            if line.startswith(("pip ", "export ")):
                continue
            # kcat takes no URL.
            command = line.replace("localhost:9092", url.removeprefix("kafka://"))
            if line.startswith(("scoop-outbox relay", "scoop-outbox worker")):
                process = subprocess.Popen(command.split(), **options)  # type: ignore[call-overload]
                stack.callback(_end, process)
                served.append(process)
                # As a reader does: a service that has never been here is not waited for, nor handed what is older.
                until_blocking(ready, 60, 0.05)
            else:
                # As a reader does.
                subprocess.run(command, shell=True, check=True, timeout=60, **options)  # type: ignore[call-overload]  # noqa: S602
        until_blocking(committed, 60, 0.1)
        for process in served:
            process.send_signal(signal.SIGINT)
        assert [process.wait(30) for process in served] == [0, 0, 0]
    return (folder / "log").read_text()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_kafka(kafka_installed: None, kcat: str, database_url: str, tmp_path: Path) -> None:
    assert kcat
    with start_kafka(tmp_path / "kafka") as cluster:
        printed = follow("kafka", cluster.url, database_url, tmp_path)

    assert "created  topic orders" in printed
    assert "created  topic parcels" in printed
    assert "shipping: handed the parcel over" in printed
    assert "Traceback" not in printed


def test_rabbitmq(own_rabbit: RabbitServer, database_url: str, tmp_path: Path) -> None:
    # Other tests have been here and left queues of these names.
    own_rabbit.ctl("add_vhost", "readme")
    own_rabbit.ctl("set_permissions", "-p", "readme", urlsplit(own_rabbit.url).username or "", ".*", ".*", ".*")
    printed = follow("amqp", f"{own_rabbit.url}readme", database_url, tmp_path)

    assert "created  queue shop" in printed
    assert "ensured  binding of queue shop to exchange amq.topic for orders" in printed
    assert "shipping: handed the parcel over" in printed
    assert "Traceback" not in printed
