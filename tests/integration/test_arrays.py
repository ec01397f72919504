"""Lists go to Postgres in binary, and arrive as what they are."""

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.adapt import Transformer
from psycopg.pq import Format

from scoop_outbox.store.arrays import ELEMENTS, array

Ask = Callable[[str, bytes], Any]

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "bytea": st.binary(),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "smallint": st.integers(-(2**15), 2**15 - 1),
    "int": st.integers(-(2**31), 2**31 - 1),
    "text": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    "float8": st.floats(allow_nan=False),
    "uuid": st.uuids(),
}


@pytest.fixture(scope="module")
def ask(postgres_url: str) -> Iterator[Ask]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:

        def answer(name: str, value: bytes) -> Any:
            query = f"select $1::{name}[]".encode()
            result = connection.pgconn.exec_params(query, [value], None, [Format.BINARY])
            assert not result.error_message, result.error_message
            transformer = Transformer(connection)
            transformer.set_pgresult(result)
            return transformer.load_row(0, tuple)

        yield answer


@pytest.mark.parametrize("name", ELEMENTS)
@settings(deadline=timedelta(seconds=5))
@given(data=st.data())
def test_a_list_arrives_as_it_is(ask: Ask, name: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | VALUES[name], max_size=20))
    assert ask(name, array(values, ELEMENTS[name])) == (values,)


def test_a_uuid_may_be_written_out(ask: Ask) -> None:
    one = uuid.uuid4()
    assert ask("uuid", array([str(one), one], ELEMENTS["uuid"])) == ([one, one],)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        array(["\ud800"], ELEMENTS["text"])
