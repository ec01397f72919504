"""Which statements look at which tables, as far as they are exempt from what tests of plans ask of all others."""

UTILITY = {
    "begin",
    "commit",
    "commit_and_begin",
    "rollback",
    "savepoint",
    "release_savepoint",
    "rollback_to_savepoint",
}
UTILITY |= {"without_waiting_for_disk", "read_clock"}
UTILITY |= {"reset_session_authorization", "reset_role", "reset_settings", "discard_temporary", "discard_sequences"}
UTILITY |= {"release_session", "release_locks", "wait_for_backend"}  # they look at the server, and at no table of ours
UTILITY |= {"read_schema_exists", "read_backend", "limit_lock_waits", "lock_migrations", "read_blockers"}
LIVING = {"read_handlers", "read_under_way", "retire_waiting", "retire_runs", "take_over", "is_in_outbox"}
LIVING |= {"read_silent_children", "retire_children_of_home", "retire_elsewhere"}
LIVING |= {"examine_peers", "find_peer", "read_committed_elsewhere", "count_waiting"}
LIVING |= {"find_ids_in_transit", "read_whereabouts", "list_found_runs", "read_external_in_outbox"}
"""What operators ask, and a saga that has another name: they look through all that lives, but not through what was.
They are asked on connections that search indexes, as in `plan_once`."""
HISTORY = {"list_runs", "read_draining"}
"""What operators ask about runs in any state: they look through all that was, and `docs/operations.md` says so."""
BIG = {"message", "run", "step", "child", "foreign_child", "mailbox", "outbox", "lane_entry", "failure", "request"}

QUEUES = ("outbox", "mailbox", "lane_entry")
