"""Types of payloads: what a typed topic turns into JSON values, and what it makes of a body.

Structs are msgspec's, everything else is pydantic's; neither is imported before a topic needs it. What is wrong with a
value is said in the words of the type: fields and rules, never values, for the words end in logs and in failures.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, Protocol

from scoop_outbox.payloads.changes import arrives_changed

MOST_MISFITS = 5
"""So many fields are named when more do not fit."""

_PYDANTIC = (
    "a typed topic needs pydantic 2, which is not installed here: pip install 'scoop-outbox[pydantic]'. msgspec's "
    "structs do without, and so does a plain topic name"
)
# What a rule of pydantic's may tell: what the type's author wrote, and lengths. The rest is, or holds, what came.
_TELLS = frozenset({
    *("expected", "gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "actual_length", "pattern"),
    *("class", "class_name", "dataclass_name", "field_type", "max_digits", "decimal_places", "whole_digits"),
})  # fmt: skip
_MODULES = re.compile(r"(?:[\w<>]+\.)+(?=\w)")
_AT = re.compile(r" - at `(?P<path>[^`]+)`$")


class MisfitError(Exception):
    """A value does not fit a type: which fields, and by which rules. Never holds values."""


class UnusableTypeError(Exception):
    """Nothing can make values of this type of a body; says why, and what to do."""


class PayloadType(Protocol):
    """Makes JSON values of payloads of a type, and payloads of JSON.

    Attributes:
        expected: the class whose instances the payloads are, if it is one with fields.
    """

    expected: type | None

    def dump(self, payload: Any) -> Any:
        """Return JSON values.

        Raises:
            MisfitError: the payload is not of the type, or cannot be written as JSON.
        """

    def load(self, body: bytes) -> Any:
        """Return the payload that a body is.

        Raises:
            MisfitError: it is none.
        """

    def check(self, payload: Any, body: bytes) -> None:
        """See to it that what is launched arrives as what it is.

        Raises:
            MisfitError: `body`, which was made of `payload`, would be refused, or become something of another class.
        """


def type_name(declared: Any) -> str:
    """Return a type as people write it."""
    if isinstance(declared, type) and not typing.get_args(declared):
        return declared.__qualname__
    return _MODULES.sub("", str(declared))


def payload_type(declared: Any, depth: int) -> PayloadType:
    """Return what makes payloads of a type.

    Args:
        declared: a dataclass, a pydantic model, a TypedDict, a msgspec struct, or what is made of such: unions, lists.
        depth: how many frames above the caller the code is whose local names the type may use.

    Raises:
        UnusableTypeError: it is no type, or what it needs is not installed.
    """
    if declared is None or isinstance(declared, str):
        raise UnusableTypeError(f"{declared!r} is no type; use a dataclass, a pydantic model, or what is made of them")
    if declared is bytes or declared is bytearray or declared is memoryview:
        raise UnusableTypeError(f"{type_name(declared)} needs no type: bytes travel untouched on a plain topic name")
    if any(hasattr(part, "__struct_fields__") for part in _parts(declared)):
        return _Struct(declared)
    return _Pydantic(declared, depth + 2)  # this one and its constructor


def struct_values(value: Any) -> Any:
    """Return a struct of msgspec's as JSON values.

    Raises:
        TypeError: it holds something that is none.
    """
    import msgspec  # noqa: PLC0415 - only a program that has a struct has it

    return msgspec.to_builtins(value, str_keys=True)


def _parts(declared: Any) -> Iterator[Any]:
    yield declared
    for argument in typing.get_args(declared):
        yield from _parts(argument)


class _Struct:
    """What msgspec makes of a body."""

    def __init__(self, declared: Any) -> None:
        import msgspec  # noqa: PLC0415 - only a program that has a struct has it

        self._invalid, self._malformed = msgspec.ValidationError, msgspec.DecodeError
        self.expected = declared if isinstance(declared, type) else None
        try:
            self._decoder = msgspec.json.Decoder(declared)
        except (TypeError, NameError) as error:
            raise UnusableTypeError(f"msgspec cannot read {type_name(declared)}: {error}") from error

    def dump(self, payload: Any) -> Any:
        try:
            return struct_values(payload)
        except (TypeError, ValueError, RecursionError) as error:
            raise MisfitError(f"it cannot be written as JSON ({type(error).__name__})") from None

    def load(self, body: bytes) -> Any:
        try:
            return self._decoder.decode(body)
        except self._invalid as error:
            raise MisfitError(_said_by_msgspec(str(error))) from None
        except self._malformed:
            raise MisfitError("it is no JSON") from None
        except Exception as error:  # noqa: BLE001 - a type of the user's may raise what it likes
            raise MisfitError(type(error).__name__) from None

    def check(self, payload: Any, body: bytes) -> None:
        changed = arrives_changed(payload, self.load(body))
        if changed is not None:
            raise MisfitError(changed)


def _said_by_msgspec(text: str) -> str:
    at = _AT.search(text)
    rule = text[: at.start()] if at else text
    # Other texts quote what came.
    if not rule.startswith(("Expected ", "Object missing required field ")):
        rule = "the value is not allowed"
    return f"{at['path'].removeprefix('$').removeprefix('.')}: {rule}" if at else rule


class _Pydantic:
    """What pydantic makes of a body.

    Wrong types are refused, not converted: that a number came as text is the producer's mistake. A pydantic model has
    its own say in that, and so has what holds one.
    """

    def __init__(self, declared: Any, depth: int) -> None:
        try:
            from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - optional, and slow to import
            from pydantic_core import PydanticSerializationError  # noqa: PLC0415
        except ImportError as error:
            raise UnusableTypeError(_PYDANTIC) from error
        self._invalid, self._unwritable = ValidationError, PydanticSerializationError
        try:
            # Its own count of frames starts below this one.
            self._adapter: TypeAdapter[Any] = TypeAdapter(declared, _parent_depth=depth + 2)
            self._adapter.rebuild(raise_errors=True)
        except Exception as error:
            raise UnusableTypeError(
                f"pydantic cannot read {type_name(declared)}: {_first_line(error)}. Use a dataclass, a "
                "pydantic model or what is made of them, and declare the topic below the classes that it needs"
            ) from error
        self._names, kinds = _names_and_kinds(self._adapter.core_schema)
        self._strict = None if "model" in kinds else True
        known = isinstance(declared, type) and (is_dataclass(declared) or _is_model(declared))
        self.expected = declared if known else None

    def dump(self, payload: Any) -> Any:
        try:
            # What does not fit is found when it is read again, in better words.
            return self._adapter.dump_python(payload, mode="json", by_alias=True, round_trip=True, warnings=False)
        except Exception as error:  # noqa: BLE001 - a serializer of the user's may raise what it likes
            said = str(error)
            named = isinstance(error, self._unwritable) and said.startswith("Unable to serialize unknown type: <class")
            raise MisfitError(
                f"it cannot be written as JSON ({said if named else type(error).__name__}): annotate each field with "
                "the type of what it holds"
            ) from None

    def load(self, body: bytes) -> Any:
        try:
            return self._adapter.validate_json(body, strict=self._strict)
        except self._invalid as error:
            found = error.errors(include_url=False, include_input=False)
            said = [self._said(one) for one in found[:MOST_MISFITS]]
            more = [f"and {len(found) - MOST_MISFITS} more"] if len(found) > MOST_MISFITS else []
            raise MisfitError("; ".join(said + more)) from None
        except Exception as error:  # noqa: BLE001 - a type of the user's may raise what it likes
            raise MisfitError(type(error).__name__) from None

    def check(self, payload: Any, body: bytes) -> None:
        changed = arrives_changed(payload, self.load(body))
        if changed is not None:
            raise MisfitError(changed)

    def _said(self, error: Mapping[str, Any]) -> str:
        path = ""
        for part in error["loc"]:
            # What is no name of the type's is a key of the body's.
            path += f"[{part}]" if isinstance(part, int) else f".{part if part in self._names else '*'}"
        rule = _rule(error)
        return f"{path.removeprefix('.')}: {rule}" if path else rule


def _rule(error: Mapping[str, Any]) -> str:
    """Return the rule that was broken, without what broke it; the name of one that cannot be told without.

    Pydantic's own text is not taken over: a validator of the user's may have written it.
    """
    from pydantic_core import PydanticKnownError  # noqa: PLC0415 - somebody has imported it

    kind: Any = error["type"]
    told = {name: value for name, value in error.get("ctx", {}).items() if name in _TELLS}
    try:
        return PydanticKnownError(kind, told).message()
    except (KeyError, TypeError):
        words = str(kind).replace("_", " ")
        return f"Input should be a valid {words.removesuffix(' parsing')}" if words.endswith(" parsing") else words


def _names_and_kinds(schema: object) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that a schema of pydantic's has for fields and types, and the kinds of schemas in it."""
    names: set[str] = set()
    kinds: set[str] = set()
    seen: set[int] = set()
    ahead = [schema]
    while ahead:
        one = ahead.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, list | tuple):
            ahead += one
        elif isinstance(one, Mapping):
            fields = one.get("fields")
            names |= fields.keys() if isinstance(fields, Mapping) else set()
            for key in ("name", "validation_alias", "cls_name"):
                names |= {one[key]} if isinstance(one.get(key), str) else set()
            names |= {one["cls"].__name__} if isinstance(one.get("cls"), type) else set()
            kinds |= {one["type"]} if isinstance(one.get("type"), str) else set()
            ahead += [value for key, value in one.items() if key not in {"default", "metadata", "serialization"}]
    return frozenset(names | kinds), frozenset(kinds)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def _is_model(declared: type) -> bool:
    return hasattr(declared, "model_fields")
