"""Which tests of the contract are run: those that need what was declared, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import pytest

from scoop_outbox.broker.protocol import Feature
from scoop_outbox.testing.contract.harness import METHODS, Harness, Power

Need = Feature | Power
Test = TypeVar("Test", bound=Callable[..., Any])

_NEEDS = "contract_needs"


def needs(*what: Need) -> Callable[[Test], Test]:
    """Mark a test as one for brokers of these features, under harnesses of these powers."""

    def mark(test: Test) -> Test:
        setattr(test, _NEEDS, frozenset(what))
        return test

    return mark


class Contract:
    """Base of the classes of tests.

    A subclass that declares `features` is a contract with one broker. Tests that need something undeclared are not
    part of it: `left_out` names them, and `scoop_outbox.testing.contract.plugin` shows them.
    """

    features: ClassVar[frozenset[Feature]]
    powers: ClassVar[frozenset[Power]] = frozenset()
    left_out: ClassVar[dict[str, str]]

    concluded: ClassVar[list[type[Contract]]] = []

    def __init_subclass__(cls, **options: Any) -> None:
        """Take out what was not declared."""
        super().__init_subclass__(**options)
        if not hasattr(cls, "features"):
            return
        declared = cls.features | cls.powers
        cls.left_out = {}
        for name in dir(cls):
            needed: frozenset[Need] = getattr(getattr(cls, name), _NEEDS, frozenset())
            missing = needed - declared
            if name.startswith("test") and missing:
                cls.left_out[name] = ", ".join(sorted(str(one) for one in missing))
                setattr(cls, name, None)
        cls.concluded.append(cls)

    @pytest.fixture
    def harness(self) -> Harness:
        """The broker under test: subclasses override this fixture, in a scope of their choice."""
        pytest.fail(f"{type(self).__name__} has to define the fixture harness: see {Harness.__qualname__}")

    async def test_what_is_declared_is_what_there_is(self, harness: Harness) -> None:
        """No test may be missing because a declaration was forgotten."""
        broker = harness.broker()
        if broker is not None:
            assert broker.features == self.features
        for power, methods in METHODS.items():
            able = all(getattr(type(harness), method) is not getattr(Harness, method) for method in methods)
            assert able == (power in self.powers), power


def summary(contract: type[Contract]) -> list[str]:
    """Return a line for each test that a contract leaves out, with what was not declared."""
    where = f"{contract.__module__}.{contract.__qualname__}"
    return [f"{where} leaves out {name}: no {why}" for name, why in contract.left_out.items()]
