"""Types of payloads: what would arrive as something of another class is refused in words without values."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    Field,
    SecretBytes,
    SecretStr,
    ValidationInfo,
    computed_field,
    field_serializer,
    field_validator,
)
from typing_extensions import TypedDict

from scoop_outbox import DefinitionError, PayloadError, Topic
from scoop_outbox.message import JSON, encode

T = TypeVar("T")

SECRET = "s3cret"  # noqa: S105 - a value that must not be shown


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1


@dataclass(frozen=True, slots=True)
class Line:
    sku: str
    pieces: int = 1


@dataclass(frozen=True)
class Order:
    number: int
    first: Line
    lines: list[Line] = field(default_factory=list)


@dataclass
class Everything:
    at: datetime
    day: date
    took: timedelta
    id: uuid.UUID
    price: Decimal
    colour: Colour
    size: Size
    share: float
    pair: tuple[int, str]
    tags: frozenset[str]
    by_name: Mapping[str, Line]
    lines: Sequence[Line]
    maybe: Line | None = None
    below: Everything | None = None


@dataclass
class Cash:
    kind: Literal["cash"]
    cents: int


@dataclass
class Card:
    kind: Literal["card"]
    cents: int


@dataclass
class Cat:
    legs: int


@dataclass
class Dog:
    legs: int


@dataclass
class Box:
    content: Any


@dataclass(frozen=True, slots=True)
class WeighedLine(Line):
    grams: int = 0


@dataclass
class Tags:
    lines: frozenset[Line]


@dataclass
class Login:
    user: str
    password: SecretStr


class Key(BaseModel):
    parts: list[SecretBytes]


class Shown(BaseModel):
    password: SecretStr

    @field_serializer("password")
    def show(self, value: SecretStr) -> str:
        return value.get_secret_value()


class Page(BaseModel, Generic[T]):
    items: list[T]


class Entry(TypedDict):
    at: datetime
    note: NotRequired[str]


class Model(BaseModel):
    number: int = Field(alias="No")
    text: str = ""
    line: Line | None = None

    @computed_field  # type: ignore[prop-decorator]  # as pydantic's own documentation has it
    @property
    def double(self) -> int:
        return self.number * 2

    @field_validator("text")
    @classmethod
    def refuse(cls, value: str, _: ValidationInfo) -> str:
        if value == SECRET:
            raise ValueError(f"not {value}")
        return value


class Strict(BaseModel, extra="forbid"):
    number: int


class LargerModel(Model):
    more: int = 0


class Struct(msgspec.Struct, frozen=True):
    number: int
    at: datetime | None = None
    colour: Colour = Colour.RED
    line: Line | None = None
    by_name: dict[str, int] = {}


class LargerStruct(Struct, frozen=True):
    more: int = 0


class StructBox(msgspec.Struct):
    content: Any = None
    struct: Struct | None = None


EVERYTHING = Everything(
    at=datetime(2026, 11, 29, 20, 0, 0, 5, UTC),
    day=date(2026, 11, 29),
    took=timedelta(days=1, microseconds=3),
    id=uuid.uuid4(),
    price=Decimal("1.50"),
    colour=Colour.BLUE,
    size=Size.SMALL,
    share=2.5,
    pair=(1, "a"),
    tags=frozenset({"x"}),
    by_name={"é": Line("b")},
    lines=[Line("c", 2)],
)
SENT: list[tuple[Any, Any]] = [
    (Order, Order(1, Line("tea", 2), [Line("milk")])),
    (Everything, EVERYTHING),
    (Everything, Everything(**{**vars(EVERYTHING), "maybe": Line("d"), "below": EVERYTHING})),
    (Cash | Card, Card("card", 5)),
    (Annotated[Cash | Card, Field(discriminator="kind")], Cash("cash", 5)),
    (list[Order], [Order(1, Line("tea"))]),
    (list[Cat | Line], [Line("tea"), Cat(4)]),
    (dict[str, Decimal], {"a": Decimal("0.10")}),
    (Entry, {"at": datetime(2026, 1, 1, tzinfo=UTC), "note": "x"}),
    (datetime, datetime(2026, 1, 1, tzinfo=UTC)),
    (uuid.UUID, uuid.uuid4()),
    (Colour, Colour.RED),
    (Model, Model(No=1, text="é", line=Line("a"))),
    (list[Model], [Model(No=1)]),
    (Struct, Struct(1, datetime(2026, 1, 1, tzinfo=UTC), Colour.BLUE, Line("a"), {"x": 1})),
    (list[Struct], [Struct(1)]),
    (Struct | None, None),
    (Box, Box({"a": [1, 2.5, None, True, "x"]})),
    (Tags, Tags(frozenset({Line("a"), Line("b")}))),
    (Shown, Shown(password=SecretStr(SECRET))),
    (Page[int], Page[int](items=[1])),
    (StructBox, StructBox({"a": [1, 2.5, None, True, "x"]}, Struct(1))),
]


@pytest.mark.parametrize("kind, payload", SENT, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_launched_arrives_as_it_was(kind: Any, payload: Any) -> None:
    topic = Topic("orders", kind)
    body, content_type = encode(topic, payload)
    assert content_type == JSON
    assert body.isascii()
    assert topic.decode(body) == payload


@given(st.builds(Order, st.integers(), st.builds(Line, st.text(), st.integers()), st.lists(st.builds(Line, st.text()))))
def test_any_order_arrives_as_it_was_or_is_refused(order: Order) -> None:
    try:
        body, _ = encode(ORDERS, order)
    except PayloadError:  # half a character, for example
        return
    assert ORDERS.decode(body) == order


ORDERS = Topic("orders", Order)


def test_fields_that_the_type_does_not_have_are_ignored() -> None:
    assert ORDERS.decode(b'{"number":1,"first":{"sku":"a","new":1},"more":[]}') == Order(1, Line("a"))
    assert Topic("orders", Struct).decode(b'{"number":1,"more":2}') == Struct(1)
    assert Topic("orders", Model).decode(b'{"No":1,"more":2}').number == 1
    with pytest.raises(PayloadError, match=r"does not fit Strict: .*Extra inputs are not permitted"):
        Topic("orders", Strict).decode(b'{"number":1,"more":2}')


def test_a_pydantic_model_has_its_own_say_in_what_is_converted() -> None:
    assert Topic("orders", Model).decode(b'{"No":"7"}').number == 7


ARRIVES: list[tuple[Any, str, str]] = [
    (Order, f'{{"number":"{SECRET}","first":{{"sku":"a"}}}}', "number: Input should be a valid integer"),
    (Order, '{"number":"7","first":{"sku":"a"}}', "number: Input should be a valid integer"),
    (Order, f'{{"number":1,"first":{{"sku":"a","pieces":"{SECRET}"}}}}', r"first\.pieces: Input should be a valid int"),
    (Order, f'{{"number":1,"first":"{SECRET}"}}', "first: "),
    (Order, '{"number":1,"first":{"sku":"a"},"lines":[{"sku":"a"},{"sku":1}]}', r"lines\[1\]\.sku: .*valid string"),
    (Order, "{}", "number: Field required; first: Field required"),
    (dict[str, int], f'{{"{SECRET}":"{SECRET}"}}', r"\*: Input should be a valid integer"),
    (list[uuid.UUID], f'["{SECRET}"]', r"\[0\]: Input should be a valid uuid"),
    (Colour, f'"{SECRET}"', "Input should be 'red' or 'blue'"),
    (Annotated[Cash | Card, Field(discriminator="kind")], f'{{"kind":"{SECRET}"}}', "union tag invalid"),
    (list[Annotated[int, Field(le=5)]], "[1,7]", r"\[1\]: Input should be less than or equal to 5"),
    (list[int], f'["{SECRET}","b","c","d","e","f","g"]', r"\[4\]: .*; and 2 more"),
    (Model, f'{{"No":1,"text":"{SECRET}"}}', "text: value error"),
    (Struct, f'{{"number":"{SECRET}"}}', "number: Expected `int`, got `str`"),
    (Struct, f'{{"number":1,"colour":"{SECRET}"}}', "colour: the value is not allowed"),
    (Struct, f'{{"number":1,"by_name":{{"{SECRET}":"x"}}}}', "by_name"),
    (Struct, "{}", "Object missing required field `number`"),
    (Order, f'{{"{SECRET}', "json invalid"),
    (Struct, f'{{"{SECRET}', "it is no JSON"),
]


@pytest.mark.parametrize("kind, body, says", ARRIVES)
def test_what_does_not_fit_is_refused_by_field_and_rule_without_values(kind: Any, body: str, says: str) -> None:
    with pytest.raises(PayloadError, match=f"^a message on topic 'orders' does not fit .*{says}") as refused:
        Topic("orders", kind).decode(body.encode())
    assert SECRET not in str(refused.value)
    # A failure is stored with its causes, and pydantic's text quotes the body.
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


LAUNCHED: list[tuple[Any, Any, str]] = [
    (Order, Order(SECRET, Line("a")), "number: Input should be a valid integer"),  # type: ignore[arg-type]
    (Order, Order(1, Line("a"), [Line("b", SECRET)]), r"lines\[0\]\.pieces: "),  # type: ignore[arg-type]
    (Box, Box(Line(SECRET)), "content would arrive as dict, not as Line"),
    (Box, Box([{SECRET: uuid.uuid4()}]), r"content\[0\]\.\* would arrive as str, not as UUID"),
    (Box, Box(datetime.now(UTC)), "content would arrive as str, not as datetime"),
    (Box, Box(object()), "cannot be written as JSON .*object.*annotate each field"),
    (Cat | Dog, Dog(4), "it would arrive as Cat, not as Dog: .*tell members of a union apart"),
    (list[Cat | Dog], [Cat(4), Dog(4)], r"\[1\] would arrive as Cat, not as Dog"),
    (Cat | Dog, {"legs": SECRET}, r"Cat\.legs: "),
    (Entry, {"at": SECRET}, "at: "),
    (list[Line], Line(SECRET), "Input should be a valid list"),
    (Model, Model.model_construct(number=SECRET), "No: Input should be a valid integer"),
    (Struct, Struct(SECRET), "number: Expected `int`, got `str`"),  # type: ignore[arg-type]
    (Struct, Struct(1, object()), "cannot be written as JSON"),  # type: ignore[arg-type]
    (Line, WeighedLine("a", 1, 5), "it would arrive as Line, not as WeighedLine"),
    (Order, Order(1, Line("a"), [WeighedLine("b")]), r"lines\[0\] would arrive as Line, not as WeighedLine"),
    (Tags, Tags(frozenset({Line("a"), WeighedLine("b")})), r"lines\[\*\] would arrive as Line, not as WeighedLine"),
    (Model, LargerModel(No=1, more=2), "it would arrive as Model, not as LargerModel"),
    (Struct, LargerStruct(1, more=2), "it would arrive as Struct, not as LargerStruct"),
    (StructBox, StructBox(None, LargerStruct(1)), "struct would arrive as Struct, not as LargerStruct"),
    (StructBox, StructBox({1}), "content would arrive as list, not as set"),
    (StructBox, StructBox(Line(SECRET)), "content would arrive as dict, not as Line"),
    (Box, Box({1, 2}), "content would arrive as list, not as set"),
    (Login, Login("me", SecretStr(SECRET)), "password is a SecretStr and would arrive as stars"),
    (Key, Key(parts=[SecretBytes(SECRET.encode())]), r"parts\[0\] is a SecretBytes and would arrive as stars"),
    (frozenset[SecretStr], {SecretStr(SECRET)}, r"\[\*\] is a SecretStr and would arrive as stars"),
    (float, 2**53 + 1, "it would arrive as float, not as int"),
    (float, float("nan"), "Out of range"),
    (str, "\ud800", "json invalid"),
]


@pytest.mark.parametrize("kind, payload, says", LAUNCHED)
def test_what_would_not_arrive_as_it_was_is_refused_at_the_launch(kind: Any, payload: Any, says: str) -> None:
    with pytest.raises(PayloadError, match=f"^the payload for topic 'orders' .*{says}") as refused:
        encode(Topic("orders", kind), payload)
    assert SECRET not in str(refused.value)


@dataclass
class Unknown:
    other: NotDefined  # type: ignore[name-defined]  # noqa: F821 - that is the point


@pytest.mark.parametrize(
    "kind, says",
    [
        (None, "None is no type"),
        ("Order", "'Order' is no type"),
        (bytes, "bytes needs no type: .*plain topic name"),
        (Cat(4), "pydantic cannot read .*Use a dataclass"),
        (
            Unknown,
            "pydantic cannot read Unknown: name 'NotDefined' is not defined.*declare the topic below the classes",
        ),
        (Cat | Struct, "msgspec cannot read"),
    ],
)
def test_what_is_no_type_is_refused_where_it_is_declared(kind: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match=f"^topic 'orders': {says}"):
        Topic("orders", kind)


def test_classes_of_a_function_are_found() -> None:
    @dataclass
    class Inner:
        number: int

    @dataclass
    class Outer:
        inner: Inner

    topic = Topic("orders", Outer)
    assert topic.decode(encode(topic, Outer(Inner(1)))[0]) == Outer(Inner(1))


@pytest.fixture
def without_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)


@pytest.mark.usefixtures("without_pydantic")
def test_without_pydantic_a_typed_topic_says_what_to_install() -> None:
    with pytest.raises(DefinitionError, match=r"pip install 'scoop-outbox\[pydantic\]'"):
        Topic("orders", Order)


@pytest.mark.usefixtures("without_pydantic")
def test_structs_and_plain_topics_do_without_pydantic() -> None:
    topic = Topic("orders", Struct)
    assert topic.decode(encode(topic, Struct(1))[0]) == Struct(1)
    assert encode("orders", Line("a"))[0] == b'{"sku":"a","pieces":1}'
