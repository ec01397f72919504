"""The golden cases of the protocol: each is what docs/protocol.md says, and what the participant in Node does."""

import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scoop_outbox.failure import Failure
from tests.participant.counterpart import Json, run_id
from tests.participant.node import FIXTURES

CASES = sorted(FIXTURES.glob("*.json"))
OF_A_MESSAGE = {
    "content-type",
    "scoop-context",
    "scoop-deadlines",
    "scoop-expects",
    "scoop-home",
    "scoop-id",
    "scoop-launched-at",
    "scoop-lineage",
    "scoop-reply-to",
    "scoop-topic",
}
OF_KINDS = {
    "subscriptions": {"revision", "subscriptions", "known"},
    "confirmed": {"revision"},
    "news": {"children"},
    "orders": {"order", "children", "reason", "context", "rollbackBy"},
    "question": {"question", "child", "answerTo"},
    "answer": {"question", "active"},
}
OF_STATES: dict[str, set[str]] = {
    "started": set(),
    "committed": {"result"},
    "rolling_back": set(),
    "rolled_back": {"failure"},
    "rollback_failed": {"failure", "obstacle", "abandoned"},
    "cancelled": set(),
    "unknown": {"failure"},
}
CHILD = {"message", "run", "service", "saga", "generation"}


def messages(case: Json, *ways: str) -> Iterator[Json]:
    for step in case["exchange"]:
        for way in ways:
            if way in step:
                yield step[way]


def said(case: Json, *ways: str) -> Iterator[Json]:
    """The control messages of a case that can be understood."""
    for message in messages(case, *ways):
        body = message["body"]
        if isinstance(body, dict) and body.get("version") == 1 and body.get("kind") in OF_KINDS:
            yield message


def is_id(value: str) -> bool:
    if value in {"<id>", "$invoice", "$invoice.run"}:
        return True
    return str(uuid.UUID(value)) == value


def failures(value: object) -> Iterator[Json]:
    """All failures in a body, whole ones first."""
    if isinstance(value, dict):
        if "stackTrace" in value:
            yield value
        for each in value.values():
            yield from failures(each)
    elif isinstance(value, list):
        for each in value:
            yield from failures(each)


def test_there_are_cases_of_every_kind_state_and_order() -> None:
    cases = [json.loads(path.read_text("utf-8")) for path in CASES]
    bodies = [message["body"] for case in cases for message in said(case, "in", "out")]
    assert {body["kind"] for body in bodies} == set(OF_KINDS)
    assert {body["order"] for body in bodies if body["kind"] == "orders"} == {"roll_back", "cancel", "where", "release"}
    told = {child["state"] for body in bodies if body["kind"] == "news" for child in body["children"]}
    assert told == set(OF_STATES)
    assert len({case["about"] for case in cases}) == len(cases) >= 20


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
class TestCase:
    @pytest.fixture
    def case(self, path: Path) -> Any:
        return json.loads(path.read_text("utf-8"))

    def test_a_case_has_the_members_that_are_explained(self, case: Json) -> None:
        assert set(case) == {"about", "home", "exchange", "deadLetters"}
        assert set(case["home"]) == {"id", "name", "subscriptions"}
        assert all(len(step) == 1 and set(step) <= {"in", "out", "announce"} for step in case["exchange"])
        for message in messages(case, "in", "out"):
            assert set(message) == {"topic", "key", "headers", "body"}

    def test_headers_are_those_of_the_protocol(self, case: Json) -> None:
        for message in messages(case, "in", "out"):
            headers = message["headers"]
            assert set(headers) <= OF_A_MESSAGE
            assert headers["content-type"] == "application/json"
            for name in ("scoop-context", "scoop-deadlines", "scoop-expects"):
                assert isinstance(json.loads(headers.get(name, "[]")), list if name == "scoop-expects" else dict | list)
        for message in messages(case, "out"):
            headers = message["headers"]
            assert headers["scoop-topic"] == message["topic"]
            assert headers["scoop-home"] == case["home"]["id"]
            assert is_id(headers["scoop-id"])

    def test_control_messages_have_the_members_of_their_kind(self, case: Json) -> None:
        for message in said(case, "in", "out"):
            body = message["body"]
            assert set(body) - {"version", "kind", "from"} <= OF_KINDS[body["kind"]]
            assert set(body["from"]) == {"id", "name", "replyTo"}
            assert body["from"]["replyTo"] == f"scoop.control.{body['from']['name']}"
            assert message["topic"] in {"scoop.homes", "scoop.control.orders", "scoop.control.courier"}
            for child in body.get("children", ()):
                more = OF_STATES[child["state"]] | {"state"} if body["kind"] == "news" else set()
                assert CHILD <= set(child) <= CHILD | more

    def test_keys_of_control_messages_keep_those_of_one_run_in_order(self, case: Json) -> None:
        for message in said(case, "out"):
            body = message["body"]
            if body["kind"] == "news":
                assert {message["key"]} == {child["message"] for child in body["children"]}
            elif body["kind"] == "orders":
                assert message["key"] in {one["run"] for one in children(case, "out")}
            else:
                assert message["key"] == case["home"]["id"]

    def test_ids_of_runs_are_computed(self, case: Json) -> None:
        for child in children(case, "in", "out"):
            assert is_id(child["message"])
            if child["message"] != "$invoice":
                assert child["run"] == run_id(child["message"], child["service"], child["saga"])

    def test_generations_grow_unless_the_same_is_told_again(self, case: Json) -> None:
        told: dict[str, Json] = {}
        for message in said(case, "out"):
            for child in message["body"]["children"] if message["body"]["kind"] == "news" else ():
                before = told.get(child["run"])
                assert before is None or child == before or child["generation"] > before["generation"]
                told[child["run"]] = child

    def test_failures_are_in_the_neutral_form(self, case: Json) -> None:
        for message in messages(case, "in", "out"):
            for one in failures(message["body"]):
                written = {**one, "stackTrace": []} if one["stackTrace"] == "<places>" else one
                assert Failure.from_json(written).to_json() == written


def children(case: Json, *ways: str) -> Iterator[Json]:
    for message in said(case, *ways):
        yield from message["body"].get("children", ())


def test_the_participant_in_node_does_what_they_show(example: Path) -> None:
    ended = subprocess.run(
        ["node", "--test", "test/"],
        cwd=example,
        env=os.environ | {"PROTOCOL_FIXTURES": str(FIXTURES)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    passed = re.search(r"^# pass (\d+)$", ended.stdout, re.MULTILINE)
    assert passed is not None, ended.stdout
    assert int(passed[1]) > len(CASES)
