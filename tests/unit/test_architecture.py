"""Budgets: what is small enough to be read stays so."""

import ast
import inspect
from pathlib import Path

import pytest

import scoop_outbox

ROOT = Path(scoop_outbox.__file__).parent
ADAPTERS = sorted(ROOT.parent.glob("adapters/*/scoop_outbox_*/**/*.py"))
MODULES = sorted(path for path in ROOT.rglob("*.py") if "versions" not in path.parts)
MODULE_LIMIT = 400
FUNCTION_LIMIT = 60
CLASS_LIMIT = 250
ATTRIBUTE_LIMIT = 12
REFERENCE = {"Scoop", "Scope"}
"""All that users do with a service, and in a step: their docstrings are a reference, and do not count."""
DECLARATIONS = {"tables", "run_tables"}
"""The schema: a list of tables, with nothing in it to be followed."""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_read_in_one_sitting(path: Path) -> None:
    text = path.read_text("utf-8")
    length = len(text.splitlines()) - documentation_in(ast.parse(text))
    assert length <= MODULE_LIMIT, f"{length} lines"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_function_is_seen_at_a_glance(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in DECLARATIONS:
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LIMIT, f"{node.name} has {length} lines"


def test_a_class_has_one_thing_to_do() -> None:
    excesses = {
        node.name: excess
        for path in [*MODULES, *ADAPTERS]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and (excess := excess_of(node))
    }
    assert not excesses


def excess_of(node: ast.ClassDef) -> str | None:
    """Return what a class has too much of, if it has."""
    length, count = (node.end_lineno or node.lineno) - node.lineno + 1, len(attributes_of(node))
    length -= documentation_in(node)
    if length <= CLASS_LIMIT and (count <= ATTRIBUTE_LIMIT or is_value(node)):
        return None
    return f"{length} lines, {count} attributes"


def documentation_in(tree: ast.AST) -> int:
    """Return how many lines of the docstrings in a tree do not count."""
    return sum(
        (part.body[0].end_lineno or part.body[0].lineno) - part.body[0].lineno + 1
        for reference in ast.walk(tree)
        if isinstance(reference, ast.ClassDef) and reference.name in REFERENCE
        for part in ast.walk(reference)
        if isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(part)
    )


def attributes_of(node: ast.ClassDef) -> set[str]:
    """Return the names that a class assigns on self, and its annotated fields."""
    fields = {one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
    return fields | {
        one.attr
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute)
        and isinstance(one.ctx, ast.Store)
        and isinstance(one.value, ast.Name)
        and one.value.id == "self"
    }


def is_value(node: ast.ClassDef) -> bool:
    """Tell whether what a class makes is plain data, which does not change."""
    decorators = [ast.unparse(one) for one in node.decorator_list]
    return any("dataclass(" in one and "frozen=True" in one for one in decorators) or any(
        ast.unparse(base) == "NamedTuple" for base in node.bases
    )


CLASS_OF_ALL = """
class Worker:
    limit: int = 3
    names = ()

    def __init__(self):
        self.a = self._b = 1
        self.c, (self._d, *self.e) = 1, (2, 3)

    def go_on(self, other):
        self.f += 1
        other.g = 1
        with open("x") as self.h:
            self.i: int = self.j
"""


def test_what_counts_as_an_attribute() -> None:
    (node,) = ast.parse(CLASS_OF_ALL).body
    assert isinstance(node, ast.ClassDef)
    assert attributes_of(node) == {"limit", "a", "_b", "c", "_d", "e", "f", "h", "i"}


@pytest.mark.parametrize(
    "head, value",
    [
        ("class A:", False),
        ("@dataclass\nclass A:", False),
        ("@dataclass(slots=True)\nclass A:", False),
        ("@dataclass(frozen=True, slots=True)\nclass A:", True),
        ("class A(NamedTuple):", True),
    ],
)
def test_what_counts_as_a_value(head: str, value: bool) -> None:
    (node,) = ast.parse(f"{head}\n    a: int\n").body
    assert isinstance(node, ast.ClassDef)
    assert is_value(node) is value


@pytest.mark.parametrize("name", scoop_outbox.__all__)
def test_a_public_name_says_what_it_is(name: str) -> None:
    value = getattr(scoop_outbox, name)
    # Not inspect.getdoc, which would inherit.
    doc = value.__doc__
    assert doc, name
    assert not doc.startswith(f"{name}("), "what a dataclass makes up is no documentation"
    for member, function in vars(value).items():
        if not member.startswith("_") and (inspect.isfunction(function) or isinstance(function, property)):
            documented = function.__doc__ or inspect.getdoc(getattr(value, member))
            assert documented, f"{name}.{member}"


def test_help_on_scoop_shows_what_users_may_do() -> None:
    assert scoop_outbox.Scoop.__mro__ == (scoop_outbox.Scoop, object)
    app = scoop_outbox.Scoop("shop")
    assert {name for name in vars(app) if not name.startswith("_")} == {"service"}


def test_public_names_are_sorted_and_there() -> None:
    assert list(scoop_outbox.__all__) == sorted(scoop_outbox.__all__)
    for name in scoop_outbox.__all__:  # they are imported when they are asked for
        assert getattr(scoop_outbox, name)
    public = {
        name for name, value in vars(scoop_outbox).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(scoop_outbox.__all__)


def test_only_the_store_writes_sql() -> None:
    for path in MODULES:
        # The demonstration has tables of its own.
        if {"testing", "store", "demo"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                first, *more = [*node.value.lower().split(), ""]
                is_sql = first in ("select", "insert", "update", "delete") and {"from", "into", "set"} & set(more)
                assert not is_sql, f"{path}: {node.value}"


def test_nobody_but_plans_asks_a_statement() -> None:
    for path in MODULES:
        if path.relative_to(ROOT).parts[:2] == ("core", "plans"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            is_one = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "statement"
            assert not is_one, f"{path}: plans are in core/plans"


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.name)
def test_an_adapter_has_one_door(path: Path) -> None:
    of_its_own = path.relative_to(ROOT.parent / "adapters").parts[1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.split(".")[0].startswith("scoop_outbox"):
                assert name == "scoop_outbox.broker" or name.split(".")[0] == of_its_own, f"{path}: {name}"


def test_there_are_adapters_to_look_at() -> None:
    assert {path.parent.name for path in ADAPTERS} == {"scoop_outbox_kafka", "scoop_outbox_rabbitmq"}
