"""The page of what must hold agrees with the tests, and no test, module or document refers to what it does not have."""

import re

import pytest

from tests.docs import behaviour

REFERENCE = re.compile(r"\(behaviour ([^)]+)\)")
REFERRING = [
    *(behaviour.ROOT / "scoop_outbox").rglob("*.py"),
    *(behaviour.ROOT / "adapters").glob("*/scoop_outbox_*/**/*.py"),
    *(behaviour.ROOT / "docs").rglob("*.md"),
]


def test_the_committed_page_tells_what_tests_there_are() -> None:
    committed = behaviour.ROOT / "docs" / "behaviour.md"
    assert committed.read_text("utf-8") == behaviour.document(), (
        "run: python -m tests.docs.behaviour >docs/behaviour.md"
    )


def test_every_id_that_a_test_names_is_explained() -> None:
    known, named = behaviour.rows(), behaviour.named()
    assert {one: tests for one, tests in named.items() if one not in known} == {}


def test_every_id_that_code_and_documents_refer_to_is_explained() -> None:
    told = [text for file in REFERRING for text in REFERENCE.findall(file.read_text("utf-8"))]
    referred = set().union(*map(behaviour.ids_in_text, told))
    assert len(referred) > 10
    assert referred - behaviour.rows().keys() == set()


def test_what_must_hold_is_said_in_a_line() -> None:
    known = behaviour.rows()
    lines = [row.text for row in known.values() if row.same is None]
    assert [line for line in lines if not re.fullmatch(r"[^|\n]{20,118}\.", line)] == []
    assert {row.same for row in known.values()} - known.keys() == {None}


@pytest.mark.parametrize(
    "name, ids",
    [
        ("test_hp_01_q2_a_child_fails", [("HP", 1), ("Q", 2)]),
        ("test_seed_2_the_log", [("SEED", 2)]),
        ("test_q05", [("Q", 5)]),
        ("test_a_step_of_q5", []),
        ("test_tx_06th", []),
        ("test_rabbitmq_4", []),
    ],
)
def test_ids_stand_at_the_beginning_of_a_tests_name(name: str, ids: list[behaviour.Id]) -> None:
    assert list(behaviour.ids_in_name(name)) == ids


def test_ids_stand_anywhere_in_a_docstring() -> None:
    assert behaviour.ids_in_text("What RB-01 and Q2 say, not CC-R07, HPX-1 or d3.") == {("RB", 1), ("Q", 2)}
