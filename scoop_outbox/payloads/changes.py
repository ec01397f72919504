"""What a typed payload would arrive as: compared at the launch, by classes, in words without values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

_CLASSES = "__dataclass_fields__", "model_fields", "__struct_fields__"
"""Where dataclasses, pydantic's models and msgspec's structs keep their fields."""


def arrives_changed(sent: Any, got: Any, path: str = "") -> str | None:
    """Say which value of a payload has come back as something of another class, if one has."""
    where = path.removeprefix(".") or "it"
    if hasattr(type(sent), "get_secret_value") and _is_hidden(sent, got):
        return f"{where} is a {type(sent).__qualname__} and would arrive as stars: use the type of its value instead"
    if _is_other(sent, got):
        return (
            f"{where} would arrive as {type(got).__qualname__}, not as {type(sent).__qualname__}: annotate it with its "
            "type, and tell members of a union apart by a field of type Literal"
        )
    below = (arrives_changed(one, other, path + name) for name, one, other in _below(sent, got))
    return next((text for text in below if text is not None), None)


def _is_hidden(sent: Any, got: Any) -> bool:
    return not hasattr(got, "get_secret_value") or bool(sent.get_secret_value() != got.get_secret_value())


def _is_other(sent: Any, got: Any) -> bool:
    if _fields(sent) is not None:
        # A subclass would arrive without the fields that it adds; one that adds none loses nothing.
        loses_nothing = isinstance(sent, _class(got)) and _fields(sent) == _fields(got)
        return _class(sent) is not _class(got) and not loses_nothing
    if got is None:
        return False
    if isinstance(sent, int) and isinstance(got, float):
        return sent != got
    if isinstance(got, list):
        return not isinstance(sent, Sequence)
    if isinstance(sent, Mapping) and isinstance(got, Mapping):
        return False
    return isinstance(got, str | int | float | dict) and not isinstance(sent, type(got))


def _below(sent: Any, got: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the values inside two values that belong together."""
    fields = _fields(sent)
    if fields is not None:
        yield from ((f".{name}", getattr(sent, name, None), getattr(got, name, None)) for name in fields)
    elif isinstance(sent, Mapping) and isinstance(got, Mapping):
        yield from ((".*", value, got[key]) for key, value in sent.items() if key in got)
    elif isinstance(sent, AbstractSet) and isinstance(got, AbstractSet):
        # They have no order: those that are not equal to any are compared with what is left.
        left = sorted((one for one in sent if one not in got), key=_class_name)
        came = sorted((one for one in got if one not in sent), key=_class_name)
        yield from (("[*]", one, other) for one, other in zip(left, came, strict=False))
    elif isinstance(sent, Sequence) and isinstance(got, Sequence) and not isinstance(sent, str | bytes):
        pairs = enumerate(zip(sent, got, strict=False))
        yield from ((f"[{index}]", one, other) for index, (one, other) in pairs)


def _class(value: Any) -> Any:
    generic = getattr(value, "__pydantic_generic_metadata__", None) or {}
    return generic.get("origin") or type(value)  # Page[int] and Page are equal to pydantic


def _class_name(value: Any) -> str:
    return type(value).__qualname__


def _fields(value: object) -> Sequence[str] | None:
    kind = type(value)
    known = next((found for name in _CLASSES if (found := getattr(kind, name, None)) is not None), None)
    return None if known is None else list(known)
