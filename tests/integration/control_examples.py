"""Statements about other homes with parameters as they occur."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from scoop_outbox.core.statement import document
from tests.integration.full_database import FAMILY, FANOUT, FINISHED, message_id, run_id

HOME = UUID(int=7)
"""The home that all of `foreign_child` belongs to in the full database."""


def control_examples() -> list[tuple[str, dict[str, Any]]]:
    """Return them by name."""
    numbers = [FINISHED + 1 + n for n in range(10)]
    children = {"messages": [message_id(n) for n in numbers], "runs": [run_id(n) for n in numbers]}
    named = {"services": ["shop"] * 10, "sagas": ["saga 1"] * 10, "generations": [3] * 10}
    listeners = {"home": HOME, "topics": ["t"], "services": ["shop"], "sagas": ["saga 1"]}
    news = [_news(n, state) for n, state in zip(numbers, ["committed", "started", "rolled_back"] * 3, strict=False)]
    ended = {"run": run_id(numbers[0]), "message": message_id(numbers[0]), "result": None, "obstacle": None}
    no_more = {"context": None, "rollback_by": None}
    asked = {"run": message_id(numbers[0]), "reason": '{"type":"Boom"}', "context": None, "rollback_by": None}
    first = {"message": UUID(int=0), "service": "", "saga": "", "silent": timedelta(minutes=10)}
    return [
        ("read_identity", {}),
        ("name_home", {"name": "shop"}),
        ("lock_identity", {}),
        ("may_read_place", {}),
        ("read_place", {}),
        ("store_place", {"place": "7:5"}),
        ("find_namesake", {}),
        ("find_peer", {"name": "stock"}),
        ("drop_peer", {"home": HOME}),
        ("drop_peer_listeners", {"home": HOME}),
        ("retire_children_of_home", {"home": HOME, "failure": UUID(int=4), "most": 500}),
        ("read_listeners_here", {}),
        ("read_known_revisions", {}),
        ("store_announced", {"revision": 2, "announced": "[]"}),
        ("send_control", {"topic": "scoop.homes", "key": str(HOME), "body": b"{}"}),
        ("note_peers", {"homes": [HOME], "names": ["stock"], "reply_to": ["scoop.control.stock"],
                        "said_at": [None]}),
        ("lock_peer", {"home": HOME}),
        ("store_peer_revision", {"home": HOME, "revision": 2, "draining": False}),
        ("drain_home", {"draining": True}),
        ("read_launching", {"home": HOME}),
        ("count_waiting", {"home": HOME}),
        ("read_sharing", {"service": "shop", "topics": ["t", "u"]}),
        (
            "forward",
            {"ids": [HOME] * 10, "topics": ["scoop.control.stock"] * 10, "keys": ["k"] * 10, "bodies": [b"{}"] * 10},
        ),
        ("read_draining", {}),
        ("read_sagas_only_here", {}),
        ("read_awaiting", {}),
        ("drop_peer_subscriptions", listeners),
        ("store_peer_subscriptions", {**listeners, "patterns": [None], "names": [json.dumps(["u"])],
                                      "formerly": [json.dumps(["saga 0"])]}),
        ("store_confirmed", {"home": HOME, "revision": 2, "waiting": 3}),
        ("read_unconfirmed", {}),
        ("know_peers", {"homes": [HOME] * 10, "reply_to": ["t"] * 10}),
        ("report_started", {"ids": children["messages"], "homes": [HOME] * 10, "service": "shop"}),
        ("look_at_homes", {"most": 100}),
        ("examine_peers", {}),
        ("read_lost_children", {"type": "UnknownRun"}),
        ("count_control_letters",
         {"channel": "scoop.control.shop", "homes": "scoop.homes", "channels": "scoop.control."}),
        ("tell_home", {**ended, "state": "rolled_back", "failure": '{"type":"Boom"}'}),
        ("tell_home", {**ended, "state": "committed", "result": "7", "failure": None}),
        ("apply_news", {"document": document(news)}),
        ("apply_news", {"document": document([_news(FANOUT + 30_000, "committed")])}),
        ("report_abandoned", {"run": ended["run"], "message": ended["message"], "failure": "{}", "obstacle": "{}"}),
        ("report_reopened", {"runs": children["runs"]}),
        ("read_foreign_children", children),
        ("read_silent_children", {**first, "heard_since": datetime.min.replace(tzinfo=UTC), "most": 500,
                                  "home": None}),
        ("read_committed_elsewhere", {"home": HOME}),
        ("release_foreign", {**children, "home": HOME}),
        ("release_elsewhere", {"runs": [run_id(FAMILY + n) for n in range(FAMILY)], "roots": [message_id(FAMILY)]}),
        ("read_elsewhere", {"target": message_id(numbers[0])}),
        *[("read_top_elsewhere", {"target": one})
          for one in (run_id(numbers[0]), message_id(numbers[0]), message_id(FAMILY), run_id(FAMILY + 1), uuid4())],
        *[("ask_above", {"target": one}) for one in (run_id(numbers[0]), message_id(FAMILY))],
        ("read_answer_from_above", {"question": 1}),
        ("store_answer_from_above", {"question": 1, "outcome": "ended above", "note": None}),
        *[("read_above_child", {"message": message_id(one), "service": "shop", "saga": "saga 1", "most": 100})
          for one in (numbers[0], FAMILY, FANOUT + 30_000)],
        ("cancel_elsewhere", {**asked, "order": "cancel", "failure": UUID(int=4)}),
        ("roll_back_elsewhere", {**asked, "order": "roll_back"}),
        ("raise_generations", {**children, "generations": [3] * 10}),
        ("read_unknown_children", children),
        ("roll_back_foreign", {"home": HOME, "runs": children["runs"], "failure": UUID(int=4), **no_more}),
        ("bury_foreign", {**children, **named, "home": HOME}),
        ("bury_foreign", {**children, **named, "home": HOME, "messages": [uuid4() for _ in numbers]}),
        ("cancel_foreign", {"home": HOME, "runs": children["runs"], "failure": UUID(int=4)}),
    ]  # fmt: skip


def _news(number: int, state: str) -> dict[str, Any]:
    named = {"message": str(message_id(number)), "run": str(run_id(number)), "home": str(HOME)}
    return {**named, "generation": 2, "state": state, "result": "7", "failure": None, "obstacle": None}
