"""The relay's delete searches an index, also while Postgres believes the outbox to be empty."""

from typing import Any

import psycopg
import pytest

from scoop_outbox.store import queries
from scoop_outbox.store.schema import DEFAULT_SCHEMA, SHARDS

FILL = """
insert into scoop_outbox.outbox (shard, message_id, topic, body, content_type, headers)
select n % 8, gen_random_uuid(), 'orders', '\\x31', 'application/json', '{}' from generate_series(1, 16000) n
"""


@pytest.mark.parametrize("count", [16, 4000])
def test_what_was_published_is_found_by_number_whatever_the_statistics_say(database_url: str, count: int) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("vacuum analyze scoop_outbox.outbox")
        connection.execute(FILL.encode())
        rows = connection.execute(
            "select shard, array_agg(seq)::text from "
            "(select shard, seq from scoop_outbox.outbox order by seq limit %s) o group by shard",
            [count],
        ).fetchall()
        params = {
            "shards": [shard for shard, _ in rows],
            "seqs": [seqs for _, seqs in rows],
            "owned": list(range(SHARDS)),
            "epochs": [0] * SHARDS,
        }
        explained = connection.execute(
            b"explain (analyze, timing off, format json) " + queries.load(DEFAULT_SCHEMA)["delete_published"], params
        ).fetchone()
        assert explained is not None
        assert discarded(explained[0][0]["Plan"]) == 0
        left = connection.execute("select count(*) from scoop_outbox.outbox").fetchone()
    assert left == (16000 - count,)


def discarded(node: dict[str, Any]) -> int:
    """Return how many rows a plan read in vain."""
    # Not what is joined: the eight shards that were asked about with the eight that are owned.
    own = sum(int(value) for name, value in node.items() if name == "Rows Removed by Filter")
    return own + sum(map(discarded, node.get("Plans", [])))
