"""Names of modules are standard terms: words of the glossary, or of the field."""

import re
from pathlib import Path

import scoop_outbox

ROOT = Path(scoop_outbox.__file__).parent
MODULES = [
    path
    for path in (*ROOT.rglob("*.py"), *ROOT.parent.glob("adapters/*/scoop_outbox_*/**/*.py"))
    if "versions" not in path.parts and not path.stem.startswith("__")
]
OF_THE_FIELD = """
    adaptation after announce announcer answers app arrays assignment async backward blockers blocking bounds cache
    cancellation changes channels classes client commit connect consumer contracts count counters daemons ddl decide
    demonstration diagram disconnect docker doctor engine env errors events execute exits explain explanation faults
    finding forks frames gate generics groups handlers harness headers health http idempotency incoming inside
    inspect installation kafka killed launch launcher leases leftovers lending limit limits log loops members
    membership
    metrics migrate migrations mode names node options orders other outages output parking payments pipeline placement
    places plugin plugins policy polling pooler pools positions postgres prefetch prefixes preparing probe process
    processes progress properties protocol publisher publishing queries query queue rabbitmq reasons receiving
    reconnecting record reports required reset revisions roles rounds route rows runner running same schema screen
    security selection serve server session settings shipping show signing snapshot standalone start statement
    status stock stop storage surroundings system tables time timeout tls topology traceback transaction trees trial
    types unhandled url validation waiters waiting window
"""
"""Words of the field that need no explanation. Whoever adds one asks first whether the field has another."""
WORDS = set(OF_THE_FIELD.split())


def of_the_glossary() -> set[str]:
    text = (ROOT.parent / "docs" / "glossary.md").read_text("utf-8")
    terms = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    return {word for term in terms for word in re.findall("[a-z]+", term.lower())}


def test_a_module_is_called_by_words_of_the_glossary_or_of_the_field() -> None:
    known = of_the_glossary() | WORDS
    words = {(word, path.name) for path in MODULES for word in path.stem.strip("_").split("_")}
    assert {(word, name) for word, name in words if not {word, word.removesuffix("s")} & known} == set()


def test_no_word_is_listed_in_vain() -> None:
    used = {word for path in MODULES for word in path.stem.strip("_").split("_")}
    assert WORDS - used == set()
    assert WORDS & of_the_glossary() == set()
