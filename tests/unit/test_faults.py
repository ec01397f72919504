"""Whose failure it is what the database says to a statement of ours, as a table of SQL states (behaviour Q61)."""

import psycopg
import pytest
from psycopg import errors

from scoop_outbox.store.faults import is_refusal, of_the_rows, words

OF_THE_ROWS = [
    "22001", "22003", "22P05", "23502", "23503", "23505", "23514", "23P01", "3B001", "44000", "54000", "P0001", "P0004",
]  # fmt: skip
OF_THE_MACHINERY = [
    "08006", "25006", "25P02", "26000", "28000", "40001", "40P01", "42501", "42703", "42P01", "53100", "53200", "53300",
    "55P03", "57014", "57P01", "57P02", "57P03", "58030", "XX000", "XX001",
]  # fmt: skip


def error(state: str) -> psycopg.Error:
    return errors.lookup(state)("the server's words")


@pytest.mark.parametrize("state", OF_THE_ROWS)
def test_q61_what_rows_can_cause_is_the_steps_failure(state: str) -> None:
    assert of_the_rows(error(state))


@pytest.mark.parametrize("state", OF_THE_MACHINERY)
def test_q61_nobodys_rows_have_caused_anything_else(state: str) -> None:
    assert not of_the_rows(error(state))


def test_q61_no_answer_at_all_is_the_machinery() -> None:
    assert not of_the_rows(psycopg.OperationalError("the connection is lost"))


@pytest.mark.parametrize(
    "refusal", [*(error(state) for state in ("22P02", "23505", "54001")), psycopg.DataError("text cannot contain NUL")]
)
def test_what_can_never_be_stored_is_a_refusal(refusal: psycopg.Error) -> None:
    assert is_refusal(refusal)


@pytest.mark.parametrize("state", OF_THE_MACHINERY)
def test_what_can_be_stored_later_is_none(state: str) -> None:
    assert not is_refusal(error(state))


def test_an_error_in_a_line_says_class_state_and_the_servers_words_and_no_values() -> None:
    assert words(error("55P03")) == "LockNotAvailable 55P03: the server's words"
    # Of rows it may quote the values, in its first line, too.
    assert words(error("22P02")) == "InvalidTextRepresentation 22P02"
    assert words(error("P0001")) == "RaiseException P0001"
    assert words(ValueError("a value of the user's")) == "ValueError"
