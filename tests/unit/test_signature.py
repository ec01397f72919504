"""Signatures: what is signed, byte for byte, which keys can be read, and that no secret is shown."""

import base64
import hashlib
import hmac
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoop_outbox.errors import DefinitionError
from scoop_outbox.wire.signature import SIGNED, ControlKey, ControlKeys, canonical_form, control_keys

GOLDEN = json.loads((Path(__file__).parent.parent.parent / "docs" / "protocol" / "signatures.json").read_text("utf-8"))
SECRET = "5ec2e7" * 8
KEY = f"k1:{SECRET}"
SHORT, BYTES = bytes(range(16)), b"\xfb\xff" * 16
HEADERS = {"scoop-id": "i", "scoop-home": "h", "scoop-topic": "t", "scoop-expects": "[]"}


def keys_of(*ids: str) -> ControlKeys:
    found = control_keys([f"{one}:{GOLDEN['keys'][one]}" for one in ids])
    assert found is not None
    return found


@pytest.mark.parametrize("case", GOLDEN["signed"], ids=lambda case: case["name"])
def test_what_is_signed_is_what_the_protocol_says(case: dict[str, Any]) -> None:
    headers, body = case["headers"], base64.b64decode(case["body"])
    assert canonical_form(headers, body).hex() == case["canonicalForm"]
    assert keys_of(case["key"]).sign(headers, body) == case["signature"]
    # Whichever signs here, each of them verifies.
    both = keys_of(*sorted(GOLDEN["keys"]))
    assert both.problem({**headers, "scoop-signature": case["signature"]}, body) is None
    # By the words of the protocol, and not by our code.
    version, key, mac = case["signature"].split(":")
    fields: list[bytes | None] = [b"v1"]
    names = ["id", "home", "topic", "lineage", "expects", "reply-to", "context", "deadlines"]
    fields += [headers[f"scoop-{name}"].encode() if f"scoop-{name}" in headers else None for name in names]
    fields.append(hashlib.sha256(body).digest())
    form = b"".join(b"\xff" * 8 if one is None else len(one).to_bytes(8, "big") + one for one in fields)
    secret = bytes.fromhex(GOLDEN["keys"][key])
    assert (version, base64.b64decode(mac)) == ("v1", hmac.new(secret, form, hashlib.sha256).digest())


@pytest.mark.parametrize("case", GOLDEN["refused"], ids=lambda case: case["name"])
def test_what_was_changed_is_refused(case: dict[str, Any]) -> None:
    assert keys_of(*GOLDEN["keys"]).problem(case["headers"], base64.b64decode(case["body"])) is not None


REASONS = {
    "no signature": "it is not signed, and this home has control keys",
    "another body": "its signature with the key '2027-01' is not that of this message",
    "an unknown key": "it is signed with the key '2020-01', which is not among the control keys of this home",
    "an unknown version": "its signature has a form that is not known here",
    "signed without a topic": "it is signed without its header scoop-topic",
}


@pytest.mark.parametrize("name", REASONS)
def test_why_it_is_refused_is_said(name: str) -> None:
    (case,) = (case for case in GOLDEN["refused"] if case["name"] == name)
    assert keys_of(*GOLDEN["keys"]).problem(case["headers"], base64.b64decode(case["body"])) == REASONS[name]


@given(st.data())
def test_no_two_messages_have_one_form(data: st.DataObject) -> None:
    values = st.dictionaries(st.sampled_from(SIGNED), st.text("ab\0\ud800", max_size=3))
    one, other = data.draw(values), data.draw(values)
    body, second = data.draw(st.binary(max_size=3)), data.draw(st.binary(max_size=3))
    assert (canonical_form(one, body) == canonical_form(other, second)) == ((one, body) == (other, second))


@pytest.mark.parametrize(
    "text",
    [
        f"k1:{SHORT.hex()},k2:{base64.b64encode(BYTES).decode()}",
        f"k1:{SHORT.hex().upper()}\n  # k0:old\n\nk2:{base64.urlsafe_b64encode(BYTES).decode()}",
        f"k1:{base64.b64encode(SHORT).decode().rstrip('=')} , k2:{BYTES.hex()}",
    ],
)
def test_keys_can_be_written_in_several_ways(text: str) -> None:
    assert control_keys(text) == ControlKeys((ControlKey("k1", SHORT), ControlKey("k2", BYTES)))


@pytest.mark.parametrize("text", ["", " \n, ", "# k1:none\n", []])
def test_no_keys_are_none(text: str) -> None:
    assert control_keys(text) is None


@pytest.mark.parametrize(
    "text, says",
    [
        (SECRET, "entry 1 is not id:secret"),
        (f"{KEY},{SECRET}", "entry 2 is not id:secret"),
        (f"a b:{SECRET}", "entry 1 is not id:secret"),
        (f"grö:{SECRET}", "entry 1 is not id:secret"),
        (f"{SECRET}:k1", "the secret of entry 1 has fewer than 16 bytes"),
        (f"k1:{SECRET}!", "the secret of entry 1 is neither hexadecimal digits nor base64"),
        ("k1:", "the secret of entry 1 has fewer than 16 bytes"),
        (f"k1:{SECRET[:30]}", "the secret of entry 1 has fewer than 16 bytes"),
        (f"{KEY} {KEY}", "'k1' is there twice"),
        ("unsigned", "'unsigned' stands beside keys, never alone"),
    ],
)
def test_keys_that_cannot_be_are_refused_and_not_shown(text: str, says: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        control_keys(text)
    assert says in str(refused.value)
    assert SECRET[:12] not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None


def test_a_secret_is_not_shown() -> None:
    keys = control_keys(KEY)
    assert keys is not None
    for shown in (
        repr(keys),
        str(keys),
        f"{keys.keys[0]!r}",
        str(keys.keys[0]),
        str(vars(logging.makeLogRecord({"k": keys}))),
    ):
        assert SECRET[:12] not in shown
        assert str(bytes.fromhex(SECRET))[2:12] not in shown
        assert "k1" in shown


def test_what_is_not_signed_is_taken_in_as_long_as_that_is_wanted() -> None:
    keys = control_keys(f"{KEY} unsigned")
    assert keys is not None
    assert keys.problem(HEADERS, b"") is None
    signed = {**HEADERS, "scoop-signature": keys.sign(HEADERS, b"")}
    assert keys.problem(signed, b"") is None
    assert keys.problem(signed, b"other") is not None
