"""Which messages of exceptions stand in the log: those of the user's code, and none that quotes what was sent."""

import pytest

from scoop_outbox.daemon.worker.redaction import first_line

SECRET = "4111-1111"  # noqa: S105 - of nobody

QUOTED = {
    "a value's syntax": ("psycopg.errors.InvalidTextRepresentation", f'invalid input syntax for integer: "{SECRET}"'),
    "by SQLAlchemy": ("sqlalchemy.exc.DataError", f'(psycopg.errors.InvalidDatetimeFormat) invalid: "{SECRET}"'),
    "by asyncpg": ("asyncpg.exceptions.DataError", f"invalid input for query argument $1: '{SECRET}'"),
    "by psycopg2": ("psycopg2.errors.RaiseException", f"card {SECRET} is blocked"),
    "of another database": ("sqlite3.IntegrityError", SECRET),
    "a trigger's, like a constraint's": (
        "psycopg.errors.CheckViolation",
        f'card "{SECRET}" violates check constraint "c"',
    ),
    "behind a constraint's": (
        "psycopg.errors.UniqueViolation",
        f'duplicate key value violates unique constraint "c": {SECRET}',
    ),
    "by a validator": ("jsonschema.exceptions.ValidationError", f"'{SECRET}' is not of type 'integer'"),
    "by a driver whose name was cut off": ("...rs.InvalidTextRepresentation", f'invalid input: "{SECRET}"'),
}
CONSTRAINTS = [
    'duplicate key value violates unique constraint "sold_pkey"',
    'conflicting key value violates exclusion constraint "no_overlap"',
    'new row for relation "sold" violates check constraint "sold_check"',
    'null value in column "card" of relation "sold" violates not-null constraint',
    'insert or update on table "sold" violates foreign key constraint "sold_fkey"',
    'update or delete on table "sold" violates foreign key constraint "paid_fkey" on table "paid"',
]


@pytest.mark.parametrize("case", QUOTED)
def test_what_may_quote_values_is_left_out(case: str) -> None:
    assert first_line(*QUOTED[case]) == ""


@pytest.mark.parametrize("said", CONSTRAINTS)
def test_a_constraint_that_is_violated_is_named(said: str) -> None:
    assert first_line("psycopg.errors.IntegrityError", f"{said}\nDETAIL: Key (card)=({SECRET}) exists.") == said
    by_alchemy = f"(psycopg.errors.IntegrityError) {said}"
    assert first_line("sqlalchemy.exc.IntegrityError", f"{by_alchemy}\n[parameters: ({SECRET})]") == by_alchemy


@pytest.mark.parametrize("kind", ["shop.errors.Declined", "RuntimeError", "psycopg_of_mine.Error", "Declined"])
def test_what_the_users_code_says_is_said_in_a_line(kind: str) -> None:
    assert first_line(kind, "\n no funds\nat all") == "no funds"
    assert first_line(kind, " ") == first_line(kind, None) == ""
