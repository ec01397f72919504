"""What a statement costs does not depend on how much has been, nor on how much waits.

One test, because what it needs takes long to build: tables with hundreds of thousands of rows each.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.adapt import PyFormat, Transformer

from scoop_outbox._emission import Emission
from scoop_outbox.core.plans.launch import launch_params
from scoop_outbox.core.statement import document
from scoop_outbox.failure import Frame
from scoop_outbox.store import queries
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.integration.control_examples import HOME, control_examples
from tests.integration.full_database import FAMILY, FANOUT, FINISHED, STUCK, failure_id, filled, message_id, run_id
from tests.integration.statement_kinds import BIG, HISTORY, LIVING, QUEUES, UTILITY

PAGES = 400
"""Pages that one statement may touch, for a batch of at most ten. A scan of any big table takes 2,000 or more."""
SORTED = 100
"""Rows that a statement may sort: those of one hierarchy or batch."""

NOW = datetime.now(UTC)
OLD, OPEN = 500_000, FINISHED + 50_000  # both are the root of a family
SHARDS = list(range(8))
LEASE = timedelta(seconds=6)
FAILURE = UUID(int=4)


@pytest.fixture(scope="module")
def full_database(postgres_url: str, template_database: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database that has a past, and a lot of work."""
    with filled(postgres_url, template_database) as connection:
        yield connection


def batch(*, size: int, lineage: str | None = None) -> dict[str, list[Any]]:
    return {
        "ids": [uuid4() for _ in range(size)],
        "topics": ["topic 1"] * size,
        "keys": [None] * size,
        "bodies": [b"1"] * size,
        "content_types": ["application/json"] * size,
        "headers": ["{}"] * size,
    }


def launch(*, size: int, awaited: bool = False, run: UUID | None = None, via_broker: bool = False) -> dict[str, Any]:
    sent = [
        Emission(uuid4(), "topic 1", None, b"1", "application/json", {}, None, awaited, Frame("f.py", 1, None, "f"))
        for _ in range(size)
    ]
    params = launch_params(sent, None, 1, via_broker=via_broker)
    return params if run is None else {**params, "run": run}


def examples() -> list[tuple[str, dict[str, Any]]]:
    """Return every statement with parameters as they occur, more than once where it matters."""
    record = {
        "run": run_id(OPEN), "seq": 2, "step": "first", "kind": "step", "iteration": 0, "attempt": 0, "worker": "w",
        "state": "failed", "failure": FAILURE, "undoes": None, "started_at": NOW,
    }  # fmt: skip
    advance = {
        "run": run_id(OPEN), "seq": 2, "step": "first", "next_step": None, "iteration": 0, "attempt": 0,
        "state": "running", "context": None, "result": None, "ended": False, "started_at": NOW,
        "worker": "w", "version": "v1", "yields": True, "deadline": NOW + timedelta(hours=1), "own_deadline": None,
        "body_seq": 2,
    }  # fmt: skip
    update = {
        "run": run_id(OPEN), "state": "running", "step": "first", "next_step": None, "seq": 2, "instance": 2,
        "iteration": 0, "attempt": 0, "handled": 0, "not_before": None, "undo_seq": None, "compensation_seq": None,
        "handler_seq": None, "context": None, "context_changed": True, "failure": None, "obstacle": None,
        "failed": False, "result": None, "result_changed": True, "reason": None, "ended": False,
        "needs": None, "version": "v1", "giving_up": None, "yields": True,
        "deadline": NOW + timedelta(hours=1), "own_deadline": None, "rollback_by": None,
        "body_seq": 1, "finaliser_seq": None, "undo_from": 2, "unresolved": FAILURE,
    }  # fmt: skip
    below: dict[str, Any] = {
        **batch(size=10), "ids": [message_id(OPEN + 1)] + [uuid4() for _ in range(9)],
        "lineages": [str(run_id(OPEN))] * 10, "contexts": [None] * 10, "launched_at": [None] * 10,
        "deadlines": [None] * 10, "service": None,
    }  # fmt: skip
    told = {
        "state": "committed", "result": None, "failure": None, "obstacle": None, "run": run_id(OPEN + 1),
        "message": message_id(OPEN + 1),
        "service": "shop", "saga": "saga 1",
    }  # fmt: skip
    outbox = {"bytes": 100_000, "blocked_shards": [3], "blocked_topics": ["held"], "in_hand": [3, 4, 11]}
    due = {
        "back": timedelta(hours=1),
        "service": "shop",
        "sagas": ["saga 1", "saga 2"],
        "part": [0, 0],
        "parts": [1, 1],
        "own_part": [0, 0],
        "own_parts": [1, 1],
        "others": ["v2"],
        "suspect": NOW,
        "most": 17,
    }
    listed = {
        "states": ["running"], "service": None, "saga": None, "older": None, "text": None, "oldest": False, "most": 100,
        "keys": [],
    }  # fmt: skip
    worker = {"worker": uuid4(), "service": "shop"}
    asked = {"failure": FAILURE, "order": "cancel", "reason": None, "context": None, "rollback_by": None}
    gone = {"runs": [run_id(FAMILY + n) for n in range(FAMILY)], "roots": [message_id(FAMILY)]}
    told_of = {"runs": [run_id(OPEN + n) for n in range(10)]}
    noted = {
        **told_of, "reasons": ["why"] * 10, "parks": [True] * 10, "takers": [None] * 10, "chances": [0.7] * 10,
        "timeouts": [60.0, None] * 5,
    }  # fmt: skip
    return [
        ("claim_run", {"run": run_id(OLD)}),
        ("claim_run", {"run": run_id(FINISHED + 1)}),
        ("claim_again", {"run": run_id(OPEN), "seq": 1, "state": "running", "saga": "saga 1"}),
        ("read_children", {"run": run_id(OLD)}),
        ("read_children", {"run": run_id(OPEN)}),
        ("read_children_without_results", {"run": run_id(OLD)}),
        ("read_children_without_results", {"run": run_id(OPEN)}),
        ("read_untold", {"run": run_id(OPEN)}),
        ("read_instance", {"run": run_id(OLD)}),
        ("advance_run", advance),
        ("record_step", record),
        ("read_body", {"run": run_id(OLD), "body_seq": 1, "finaliser_seq": 2}),
        ("read_body", {"run": run_id(FANOUT), "body_seq": 1, "finaliser_seq": None}),
        ("read_open_children", {"run": run_id(OPEN)}),
        ("read_open_children", {"run": run_id(FANOUT)}),
        ("read_participants", {"topics": ["topic 1", "topic 2"]}),
        ("read_participants_across", {"topics": ["topic 1", "topic 2"]}),
        ("expect_children", {"document": document([{"id": str(uuid4()), "ordinal": 1, "deadline": None,
                                                    "handlers": [["shop", "saga 1"]]}]),
                             "run": run_id(OPEN), "seq": 1}),
        ("leave_behind", {"run": run_id(OPEN), "messages": [message_id(OPEN + 1)], "services": ["shop"],
                          "sagas": ["saga 1"]}),
        ("mark_undone", {"run": run_id(OLD), "seq": 1}),
        ("update_run", update),
        ("record_failures",
         {"ids": [uuid4() for _ in range(10)], "causes": ["{}"] * 9 + [f"{{{FAILURE}}}"], "types": ["Boom"] * 10,
          "messages": [None] * 10, "sources": ["s"] * 10, "documents": ['{"type":"Boom"}'] * 10}),
        ("read_failures", {"failures": [failure_id(n) for n in (10, 5000, 700_000)], "most": 100, "bytes": 10_000}),
        ("deliver_failures", {"run": run_id(OLD), "seq": 1}),
        ("consume_failures", {"run": run_id(OLD), "seq": 1}),
        *[("ask_children", {"run": run_id(OLD), "seq": 1, "failure": FAILURE, "context": None, "rollback_by": None,
                            "reverse": reverse, "order": "roll_back", "reason": None}) for reverse in (False, True)],
        ("read_first_failure", {"run": run_id(FANOUT), "seq": 1}),
        ("expire_children", {**asked, "run": run_id(OPEN)}),
        ("expire_children", {**asked, "run": run_id(FANOUT)}),
        ("cancel_children", {**asked, "run": run_id(OPEN)}),
        ("tell_parent", told),
        ("read_children", {"run": run_id(FANOUT)}),
        ("read_children_without_results", {"run": run_id(FANOUT)}),
        ("drop_mail_if_waiting", {"ids": [1, 2, 3], "run": run_id(FANOUT)}),
        ("tell_parent", {**told, "run": run_id(FANOUT + 30_000), "message": message_id(FANOUT + 30_000)}),
        ("drop_mail", {"ids": [1, 2, 3]}),
        ("drop_mail", {"ids": []}),
        ("drop_mail_if_waiting", {"ids": [1, 2, 3], "run": run_id(OPEN)}),
        ("drop_mail_if_waiting", {"ids": [1, 2, 3], "run": run_id(OLD)}),
        ("defer_mail", {"ids": [1, 2, 3]}),
        ("post_timer", {"service": "shop", "saga": "saga 1", "version": "", "run": run_id(OPEN), "due": NOW}),
        ("address_mail", {"ids": [1, 2, 3], "version": "v2"}),
        ("read_due", due),
        ("read_due", {**due, "part": [1, 0], "parts": [4, 1]}),
        ("count_due", {"service": "shop", "sagas": ["saga 1", "saga 2"], "most": 100}),
        ("read_left_lying", {
            "service": "shop", "sagas": ["saga 1"], "back": timedelta(hours=1), "others": [], "suspect": NOW,
            "steal": timedelta(milliseconds=50), "most": 17,
        }),
        ("read_due", {**due, "part": [63, 0], "parts": [64, 1]}),
        ("read_due", {**due, "service": "other", "most": 100}),
        ("read_due", {**due, "service": "nobody"}),
        ("launch", launch(size=10, awaited=True, run=run_id(OPEN))),
        ("launch", launch(size=1)),
        ("launch_across", launch(size=10, awaited=True, run=run_id(OPEN))),
        ("launch_across", launch(size=1, via_broker=True)),
        ("launch", launch(size=1, via_broker=True)),
        ("find_home", {"schema": DEFAULT_SCHEMA}),
        *[(name, {"document": document({"topics": ["t", "u"], "sagas": ["saga 1"]})})
          for name in ("read_listeners", "read_listeners_across")],
        ("take_in", {**below, "lineages": [None] * 10, "ids": batch(size=10)["ids"]}),
        ("take_in", below),
        ("take_in", {**below, "service": "shop"}),
        ("take_in_across", {**below, "lineages": [None] * 10, "service": "shop", "homes": [HOME] * 10,
                     "above": [str(run_id(OPEN))] * 10, "expects": ['[["shop","saga 1"]]'] * 10}),
        ("take_in", {**below, "lineages": [None] * 10, "topics": ["topic in order"] * 10, "keys": ["key"] * 10}),
        ("lock_lane", {"lane": run_id(1)}),
        ("read_lane_entry", {"run": run_id(FINISHED + 1)}),
        ("take_lane", {"run": run_id(FINISHED + 20_000), "mail": [1, 2, 3]}),
        ("take_lane", {"run": run_id(OLD), "mail": [1, 2, 3]}),
        ("leave_lane", {"run": run_id(FINISHED + 1)}),
        ("leave_lane", {"run": run_id(OLD)}),
        ("take_in", {**below, "lineages": [None] * 10, "service": "shop"}),
        ("bury_incoming", {**batch(size=10), "positions": ["p"] * 10, "reasons": ["r"] * 10, "service": "shop"}),
        ("read_home", {}),
        *control_examples(),
        ("list_dead_letters", {"origin": None, "topic": "t", "service": None, "after": 0, "most": 100}),
        ("newest_dead_letter", {}),
        ("read_dead_letter", {"letter": 1}),
        ("drop_dead_letters", {"letters": [1, 2]}),
        ("relaunch", {"letter": 1}),
        ("is_handled", {"message": message_id(OLD), "service": "shop"}),
        ("read_outbox", outbox | {"shards": SHARDS, "low": [0] * 8, "most": 10}),
        ("read_outbox", outbox | {"shards": [3], "low": [500_000], "most": 10, "bytes": 5}),
        ("read_ends", {"shards": SHARDS, "low": [0] * 8}),
        ("read_writers", {}),
        ("delete_published",
         {"shards": SHARDS, "seqs": [f"{{{n},{n + 8}}}" for n in (8, *range(1, 8))], "owned": SHARDS,
          "epochs": [0] * 8}),
        ("bury_unpublishable",
         {"shards": [n % 8 for n in range(1, 9)], "seqs": list(range(1, 9)), "reasons": ["why"] * 8, "owned": SHARDS,
          "epochs": [0] * 8}),
        ("look_at_outbox", {"most": 10}),
        ("acquire_shards", {"owner": uuid4(), "lease": LEASE}),
        ("renew_shards", {"shards": SHARDS, "epochs": [0] * 8, "lease": LEASE}),
        ("release_shards", {"shards": SHARDS, "epochs": [0] * 8}),
        ("expect_here", {
            "document": document({"service": "shop", "handlers": [{"id": str(uuid4()), "saga": "saga 1"}]})
        }),
        ("read_unhandled",
         {"ids": [message_id(OLD), uuid4()], "lineages": [str(run_id(OLD)), None], "service": "shop"}),
        ("read_listening", {"service": "shop", "topics": ["topic 1"]}),
        ("lock_service", {"service": "shop"}),
        ("tell_apart", {"service": "shop", "sagas": ["saga 1"]}),
        ("rename", {"service": "shop", "formers": ["saga 1"], "sagas": ["new"]}),
        ("take_over_subscriptions", {"service": "shop", "sagas": ["new"]}),
        ("read_former", {"service": "shop", "sagas": ["new"]}),
        ("take_over", {"service": "shop", "formers": ["saga 1"], "sagas": ["new"], "most": 100}),
        ("read_subscribed", {"service": "shop", "topics": ["topic 1"], "sagas": ["saga 1"]}),
        ("read_handlers", {"service": None, "saga": None, "most": 100}),
        ("read_alive", {"service": None}),
        ("read_under_way", {"service": "shop", "saga": None, "most": 100}),
        ("unsubscribe", {"service": "shop", "saga": "saga 1", "topic": "topic 1"}),
        ("read_transaction", {}),
        ("is_older_open", {"transaction": "1"}),
        ("retire_elsewhere", {**asked, "run": UUID(int=0), "service": "shop", "saga": "saga 1", "most": 100}),
        ("retire_waiting", {"service": "shop", "saga": "saga 1", "state": "skipped", "failure": None, "most": 100}),
        ("retire_runs",
         {"service": "shop", "saga": "saga 1", "state": "rolled_back", "failure": FAILURE, "begun_failure": FAILURE,
          "begun": True, "most": 100, "said": None, "begun_said": '{"type":"Boom"}'}),
        ("retire_roots", {"service": "shop", "saga": None}),
        ("subscribe",
         {"topics": ["t"] * 3, "services": ["s"] * 3, "sagas": ["a", "b", "c"], "ordered": [True] * 3,
          "patterns": [None, "^t$", None], "names": ["[]"] * 3, "via_broker": True,
          "retentions": [None, 1.5, None], "payload_retentions": [None] * 3, "external": [True] * 3}),
        ("list_services_via_broker", {}),
        ("read_strangers", {"service": "shop", "sagas": ["saga 1"], "most": 100}),
        ("is_relayed", {}),
        ("read_revision", {}),
        ("read_roots", {"messages": [message_id(OLD + n) for n in range(10)]}),
        ("read_roots", {"messages": [uuid4()]}),
        ("is_known", {"message": message_id(OLD)}),
        ("read_origins", {"messages": [message_id(OLD)], "trails": [FAILURE], "origins": [FAILURE]}),
        *[(name, {"message": message, "run": run, "most": 5})
          for name in ("read_open_runs", "read_not_taken_in", "read_open_elsewhere")
          for message, run in ((message_id(OPEN), None), (None, run_id(OPEN)))],
        *[(name, {"claims": document([{"id": str(uuid4()), "topic": "t", "digest": "d"}] * 2)})
          for name in ("claim_ids", "read_launched", "release_ids")],
        ("read_taken_in", {"message": message_id(OLD)}),
        ("read_hierarchy", {"message": message_id(OLD)}),
        ("list_found_runs", listed | {"live": True, "stuck": True, "abandoned": False, "keys": ["k"]}),
        ("list_found_runs", listed | {"live": False, "stuck": True, "abandoned": True, "oldest": True}),
        ("list_runs", listed),
        ("find_ids", {"low": message_id(OLD), "high": message_id(OLD + 15), "most": 11}),
        ("find_ids", {"low": message_id(0), "high": message_id(2**48 - 1), "most": 11}),
        ("find_ids_in_transit", {"low": message_id(OLD), "high": message_id(OLD + 15), "most": 11}),
        ("read_situations", {"runs": [run_id(OLD), run_id(FINISHED + 20_000)]}),
        ("read_situations", {"runs": [run_id(FINISHED + n) for n in range(1, 11)]}),
        ("read_executing", {"runs": [run_id(OLD + number) for number in range(FAMILY)]}),
        ("read_stuck_below", {"message": message_id(OLD), "run": None, "most": 100}),
        ("read_stuck_below", {"message": None, "run": run_id(OLD), "most": 100}),
        ("read_whereabouts", {"messages": [message_id(OLD), uuid4()]}),
        ("read_unstarted", {"runs": [run_id(OLD + number) for number in range(FAMILY)], "message": message_id(OLD)}),
        ("read_children_elsewhere", {"runs": [message_id(OLD), *(run_id(OLD + number) for number in range(FAMILY))]}),
        ("read_steps", {"runs": [run_id(OLD + number) for number in range(FAMILY)]}),
        ("register_worker", {**worker, "versions": ["v2", "v1"], "sagas": ["saga 1", "saga 2"], "steps": ['["a"]'] * 2,
                             "alive": LEASE, "pooled": False}),
        ("forget_dead_workers", {"service": "shop"}),
        ("read_workers", {"service": "shop"}),
        ("read_versions", {"service": "shop"}),
        ("unregister_worker", {"worker": worker["worker"]}),
        ("read_last_known", {"service": "shop", "saga": "saga 1", "needs": "a", "version": "v1", "run": run_id(OLD)}),
        ("mark_taken", {"worker": worker["worker"], **told_of}),
        ("note_interruptions", {**noted, "most": 20}),
        ("note_interruptions", {**noted, "most": 1}),
        ("read_parked", {"service": "shop", "sagas": ["saga 1"], "steps": ["a"], "most": 100}),
        ("unpark", {"runs": [run_id(OPEN)], "anew": True}),
        ("list_parked", {"service": "shop", "most": 100}),
        ("count_stuck", {"service": "shop", "most": 100}),
        ("read_epoch", {}),
        ("read_giving_up", {"runs": [run_id(OPEN), run_id(FANOUT)], "deadlines": [None, NOW.isoformat()]}),
        ("lock_stuck", {"run": run_id(STUCK)}),
        ("read_stuck", {"run": run_id(STUCK)}),
        ("read_stuck", {"run": run_id(FANOUT)}),
        ("read_why_stuck", {"run": run_id(STUCK)}),
        ("lock_parent", {"run": run_id(STUCK + 1)}),
        ("read_origins_below", {"run": run_id(STUCK)}),
        ("read_origins_below", {"run": run_id(FANOUT)}),
        ("read_phase", {"run": run_id(STUCK)}),
        ("skip_finaliser", {"run": run_id(STUCK), "finaliser_seq": 1}),
        ("reopen", {"run": run_id(STUCK), "undo_seq": 1}),
        ("reopen", {"run": run_id(STUCK + 1), "undo_seq": None}),
        ("replace_failure", {"run": run_id(STUCK), "failure": FAILURE}),
        ("is_healed", {"run": run_id(STUCK)}),
        ("is_healed", {"run": run_id(FANOUT)}),
        ("abandon", {"run": run_id(STUCK), "failure": FAILURE}),
        ("record_action", {"run": run_id(STUCK), "kind": "skip", "note": "n", "source": "s", "seq": 1}),
        ("read_actions", {"runs": [run_id(OLD + number) for number in range(FAMILY)]}),
        ("hold_runs", {"runs": [run_id(OLD + number) for number in range(FAMILY)], "target": run_id(OLD)}),
        ("is_asked_to_give_up", {"run": run_id(OPEN), "deadline": NOW}),
        ("read_target", {"target": run_id(OPEN)}),
        ("read_target", {"target": message_id(OPEN)}),
        ("read_to_come", {"target": message_id(OPEN)}),
        ("is_in_outbox", {"target": uuid4()}),
        ("request_cancellation", {"target": message_id(OPEN), "failure": FAILURE}),
        ("deliver_cancellation", {"target": message_id(1)}),
        *[("read_in_the_way", {"target": one, "most": 100})
          for one in (run_id(OLD), message_id(OLD), run_id(OLD + 1), message_id(OPEN + 1), run_id(FINISHED))],
        *[(name, {"target": message_id(OLD)}) for name in ("is_rollback_waiting",)],
        ("hold_runs", {"runs": [run_id(FINISHED - n) for n in range(1, 10)], "target": message_id(FINISHED - 1)}),
        ("pause", {"seconds": 0.0}),
        *[("roll_back_runs", {"runs": runs, "failure": FAILURE})
          for runs in ([], [run_id(FINISHED)], [run_id(FINISHED - n) for n in range(1, 10)])],
        ("store_rollback", {"target": message_id(1), "failure": FAILURE}),
        ("store_rollback_joined", {"document": document({
            "target": str(message_id(2)), "failure": str(uuid4()), "type": "Boom", "message": None, "source": "s",
            "document": "{}",
        })}),
        *[("read_external", {"target": target, "name": "saga 1", "service": service, "declared": None})
          for target, service in ((message_id(OPEN), None), (run_id(OPEN), "shop"), (uuid4(), None))],
        ("read_external_in_outbox", {"target": uuid4(), "name": "saga 1", "service": None}),
        ("is_external_elsewhere", {"target": uuid4(), "name": "saga 1", "service": None}),
        *[(name, {"run": run_id(OPEN)}) for name in ("read_outside", "lock_external", "post_outside")],
        ("say_outside", {"run": run_id(OPEN), "kind": "complete", "failure": None, "result": "1", "source": "s"}),
        ("say_outside_joined", {"document": document({
            "run": str(run_id(OPEN + 1)), "kind": "fail", "failure": str(uuid4()), "result": None, "source": "s",
            "failures": [{"id": str(uuid4()), "causes": "{}", "type": "Boom", "message": None, "source": "s",
                          "document": "{}"}],
        })}),
        ("close_rollback", {"target": message_id(7), "outcome": "accepted"}),
        ("read_waiting_rollbacks", {"after": message_id(0), "resting": [message_id(1)], "most": 10}),
        ("read_root_sagas", {}),
        *[("find_old_roots", {"service": "shop", "saga": "saga 1", "before": datetime.now(UTC) + timedelta(hours=1),
                              "after": after, "after_run": run_id(1), "unerased": True, "most": 10})
          for after in (datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(minutes=30))],
        ("find_unhandled", {"after": message_id(FINISHED // 2), "before": NOW, "most": 10}),
        *[(name, {"roots": gone["roots"]}) for name in ("lock_roots", "read_trees")],
        ("lock_ended", {"runs": gone["runs"], "before": NOW}),
        ("prune", gone | {"remember": timedelta(days=7)}),
        ("prune", {"runs": [], "roots": [message_id(FINISHED - 1)], "remember": timedelta(days=7)}),
        ("erase_payload", gone),
        ("is_extended", gone),
        ("read_archive", {"tops": gone["roots"], "runs": gone["runs"][:3], "roots": gone["roots"] * 3}),
        ("forget_pruned", {"most": 10}),
        *[("is_pruned", {"target": target}) for target in (message_id(OLD), uuid4())],
        ("plan_once", {"local": False}),
        ("search_indexes", {"local": False}),
        ("set_limits", {"local": False}),
    ]  # fmt: skip


@dataclass
class Plan:
    """A plan as the server executed it."""

    text: str
    problems: list[str] = field(default_factory=list)

    def look(self, node: dict[str, Any]) -> None:
        table = node.get("Relation Name")
        if node["Node Type"] == "Seq Scan" and table in BIG:
            self.problems.append(f"reads all of {table}")
        rows = max((below["Actual Rows"] * below["Actual Loops"] for below in node.get("Plans", [])), default=0)
        if "Sort" in node["Node Type"] and rows > SORTED:
            self.problems.append(f"sorts {rows} rows")
        for below in node.get("Plans", []):
            self.look(below)


@contextmanager
def undone(connection: psycopg.Connection[Any]) -> Iterator[None]:
    with connection.transaction(force_rollback=True):
        yield


def explain(connection: psycopg.Connection[Any], name: str, params: dict[str, Any]) -> Plan:
    """Execute a statement as the drivers send it, and look at how the server did it."""
    order = queries.compiled(DEFAULT_SCHEMA)[name].order
    values = Transformer(connection).dump_sequence([params[key] for key in order], [PyFormat.TEXT] * len(order))
    literals = [sql.SQL("null") if value is None else sql.Literal(bytes(value).decode()) for value in values]
    arguments = sql.SQL("({})").format(sql.SQL(", ").join(literals)) if literals else sql.SQL("")
    with undone(connection):
        if name in LIVING:
            connection.execute("set local enable_seqscan = off")
        statement = sql.SQL("explain (analyze, buffers, timing off, format json) execute {} {}")
        row = connection.execute(statement.format(sql.Identifier(name), arguments)).fetchone()
    assert row is not None
    plan = Plan(json.dumps(row[0], indent=1))
    root = row[0][0]["Plan"]
    plan.look(root)
    pages = root["Shared Hit Blocks"] + root["Shared Read Blocks"]
    if name in HISTORY:
        plan.problems.clear()
    elif name in LIVING:
        past = {f"reads all of {table}" for table in BIG - set(QUEUES)}
        plan.problems = [problem for problem in plan.problems if problem in past]
    elif pages > PAGES:
        plan.problems.append(f"touches {pages} pages")
    return plan


def test_every_statement_is_looked_at() -> None:
    assert {name for name, _ in examples()} == set(queries.load(DEFAULT_SCHEMA)) - UTILITY


@pytest.mark.timeout(600)  # to fill the tables takes most of it
def test_d1_no_statement_costs_more_as_history_and_work_grow(full_database: psycopg.Connection[Any]) -> None:
    connection = full_database
    for name, query in queries.compiled(DEFAULT_SCHEMA).items():
        if name not in UTILITY:
            connection.execute(sql.SQL("prepare {} as ").format(sql.Identifier(name)).as_bytes(None) + query.text)
    problems: dict[str, Any] = {}
    for mode in ("force_generic_plan", "force_custom_plan"):
        connection.execute(sql.SQL("set plan_cache_mode = {}").format(sql.Literal(mode)))
        for number, (name, params) in enumerate(examples()):
            plan = explain(connection, name, params)
            if plan.problems:
                problems[f"{mode} {number} {name}"] = plan
    text = "\n\n".join(f"{what}: {', '.join(plan.problems)}\n{plan.text}" for what, plan in problems.items())
    assert not problems, text
