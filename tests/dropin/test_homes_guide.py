"""What docs/homes.md shows of two services with a database each is what happens."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from scoop_outbox.devservers.rabbitmq import RabbitServer
from tests.docs.markdown import ROOT, comparable, programs, run

(EXAMPLE,) = programs(ROOT / "docs" / "homes.md")


def test_the_example_prints_what_is_shown(
    own_rabbit: RabbitServer, make_database: Callable[[], str], tmp_path: Path
) -> None:
    # Nobody else is there, and no home that was there before.
    own_rabbit.ctl("add_vhost", "homes")
    own_rabbit.ctl("set_permissions", "-p", "homes", urlsplit(own_rabbit.url).username or "", ".*", ".*", ".*")
    orders, stock = make_database(), make_database()
    (tmp_path / EXAMPLE.file).write_text(EXAMPLE.code, encoding="utf-8")

    printed = run(
        *(EXAMPLE, tmp_path, orders),
        SCOOP_OUTBOX_BROKER=f"{own_rabbit.url}homes",
        ORDERS_DATABASE=orders,
        STOCK_DATABASE=stock,
    )

    assert EXAMPLE.prints is not None
    assert comparable(printed) == comparable(EXAMPLE.prints)
    for url, saga in ((orders, "place-order"), (stock, "reserve")):
        with psycopg.connect(url) as connection:
            states = connection.execute("select saga, state from scoop_outbox.run order by created_at").fetchall()
        assert states == [(saga, "committed"), (saga, "rolled_back")]
