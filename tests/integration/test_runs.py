"""Operators list runs: `scoop-outbox runs`, and `Runs.list`."""

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from scoop_outbox import RunState, Scoop
from scoop_outbox.cli.options import duration
from scoop_outbox.operations.runs import Runs
from tests.integration.seeing import ask, command, launches, nothing, printed, raises
from tests.integration.test_show import ID
from tests.waiting import until


@pytest.fixture
def runs(database_url: str) -> Iterator[Runs]:
    with Runs(database_url) as opened:
        yield opened


async def every_state(url: str) -> None:
    """Leave a run in each state, each of a saga that is called like its state, with its name as the key."""
    app = Scoop("shop", database=url)
    for state in RunState:
        saga = app.saga(state.value, on=state.value)
        first = launches("elsewhere") if state is RunState.RUNNING else nothing
        stuck = state in (RunState.ROLLBACK_FAILED, RunState.ROLLING_BACK)
        saga.add_step("first", first, compensate=raises("No way\nback") if stuck else None)
        saga.add_step("second", nothing if state is RunState.COMMITTED else raises("No Money"))
    elsewhere = Scoop("elsewhere", database=url)
    elsewhere.saga("nobody", on="elsewhere").add_step("only", nothing)
    await elsewhere.announce()
    await elsewhere.close()
    async with app.running():
        for state in RunState:
            await app.launch(state.value, None, key=state.value)
        ended = "select count(*) from run where state in ('committed', 'rolled_back', 'rollback_failed')"
        await until(lambda: ask(url, ended) == [(5,)])
        await until(lambda: ask(url, "select count(*) from child where child_run is not null") == [(1,)])
    ask(
        url,
        "update run set state = 'parked', reason = 'needs a Person', failure = null, undo_seq = null "
        "where saga = 'parked'",
    )
    ask(
        url,
        "update run set state = 'rolling_back', obstacle = null, ended_at = null where saga = 'rolling_back'",
    )
    ask(
        url,
        "insert into mailbox (service, saga, run_id, due) "
        "select service, saga, id, clock_timestamp() + interval '1 hour' from run where saga = 'rolling_back'",
    )


def sagas(found: Any) -> list[str]:
    return [run.saga for run in found]


async def test_what_has_not_ended_or_is_stuck_is_listed_first_of_all(database_url: str, runs: Runs) -> None:
    assert runs.list() == []
    await every_state(database_url)
    assert sorted(sagas(runs.list())) == ["nobody", "parked", "rollback_failed", "rolling_back", "running"]
    found = {run.saga: run for run in runs.list()}
    assert (found["running"].step, found["nobody"].step) == ("first", None)
    assert (found["rolling_back"].step, found["rollback_failed"].step) == ("first", "first")
    assert [(found["parked"].reason, found["parked"].failure_type)] == [("needs a Person", None)]
    stuck = found["rollback_failed"]
    assert (stuck.failure_type, stuck.failure_message) == ("ValueError", "No way\nback")
    assert (stuck.key, stuck.service, stuck.state) == ("rollback_failed", "shop", RunState.ROLLBACK_FAILED)
    assert timedelta(0) < stuck.age < timedelta(minutes=2)


async def test_they_are_chosen_by_what_is_asked_for(database_url: str, runs: Runs) -> None:
    await every_state(database_url)
    for state in RunState:
        assert state.value in sagas(runs.list(states=[state]))
        assert {run.state for run in runs.list(states=[state])} == {state}
    assert sorted(sagas(runs.list(states=["committed", "parked"]))) == ["committed", "parked"]
    assert sorted(sagas(runs.list(stuck=True))) == ["parked", "rollback_failed"]
    assert sagas(runs.list(service="elsewhere")) == ["nobody"]
    assert sagas(runs.list(saga="parked")) == ["parked"]
    assert sagas(runs.list(saga="committed")) == []
    # Any state, because somebody who looks for these wants to know what has become of them.
    assert sagas(runs.list(key="committed")) == ["committed"]
    assert sagas(runs.list(key="running")) == ["running"]
    assert sagas(runs.list(key="running", states=[RunState.COMMITTED])) == []
    assert sagas(runs.list(key="running", states=[RunState.RUNNING, RunState.PARKED])) == ["running"]
    assert sagas(runs.list(key="no")) == []
    assert sorted(sagas(runs.list(text="no money"))) == ["rollback_failed", "rolled_back", "rolling_back"]
    assert sagas(runs.list(text="no way")) == ["rollback_failed"]
    assert sagas(runs.list(text="ValueError: No way\nb")) == ["rollback_failed"]
    assert sagas(runs.list(text="a person")) == ["parked"]
    assert sagas(runs.list(text="%")) == []
    assert sagas(runs.list(text="no money", stuck=True, service="shop")) == ["rollback_failed"]
    with pytest.raises(ValueError, match="asleep"):
        runs.list(states=["asleep"])


async def test_their_order_is_by_age(database_url: str, runs: Runs) -> None:
    await every_state(database_url)
    ask(
        database_url,
        "update run set created_at = clock_timestamp() - interval '1 hour' * t.place "
        "from unnest(array['parked', 'rollback_failed', 'committed', 'running']) with ordinality as t (saga, place) "
        "where run.saga = t.saga",
    )
    chosen = [state for state in RunState if state not in (RunState.ROLLING_BACK, RunState.ROLLED_BACK)]
    aged = runs.list(states=chosen, older_than=timedelta(minutes=30))
    assert sagas(aged) == ["running", "committed", "rollback_failed", "parked"]
    newest = [saga for saga in sagas(runs.list(states=chosen)) if saga != "nobody"]
    assert newest == ["parked", "rollback_failed", "committed", "running"]
    assert sagas(runs.list(older_than=timedelta(hours=1.5))) == ["running", "rollback_failed"]
    assert sagas(runs.list(older_than=timedelta(hours=1.5), limit=1)) == ["running"]
    assert sagas(runs.list(stuck=True)) == ["parked", "rollback_failed"]
    assert sagas(runs.list(stuck=True, limit=1)) == ["parked"]


@pytest.mark.parametrize("key", [b"\xff\x00", "\\x41", "plain"])
async def test_a_key_is_found_as_it_is_shown(database_url: str, runs: Runs, key: str | bytes) -> None:
    app = Scoop("shop", database=database_url)
    app.saga("any", on="orders").add_step("only", nothing)
    async with app.running():
        await (await app.launch("orders", None, key=key)).wait(20)
    (run,) = runs.list(states=["committed"])
    assert run.key is not None
    assert [one.id for one in runs.list(key=run.key)] == [run.id]
    if isinstance(key, str):
        assert [one.id for one in runs.list(key=key)] == [run.id]


async def test_the_command_prints_a_line_each(database_url: str) -> None:
    empty = command(database_url, "runs")
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert empty.stderr == "no runs under way or stuck: --state lists others\n"
    assert command(database_url, "runs", "--state", "committed").stderr == "no runs\n"
    await every_state(database_url)
    head, *lines = printed(database_url, "runs", "--stuck", "--older-than", "0").splitlines()
    assert head == "id\tservice\tsaga\tstate\tstep\tage\tkey\tfailure"
    age = r"\d+\.\d{3} s"
    expected = {
        rf"{ID}\tshop\tparked\tparked\tsecond\t{age}\tparked\tneeds a Person",
        rf"{ID}\tshop\trollback_failed\trollback_failed\tfirst\t{age}\trollback_failed\tValueError: No way",
    }
    assert {one for one in expected for line in lines if re.fullmatch(one, line)} == expected, lines
    chosen = ("--state", "running", "--state", "committed", "--service", "shop", "--limit", "2")
    result = command(database_url, "runs", *chosen)
    assert {line.split("\t")[2] for line in result.stdout.splitlines()[1:]} == {"running", "committed"}
    assert result.stderr == "there may be more than 2: see --limit\n"
    assert "\tnobody\trunning\t-\t" in printed(database_url, "runs", "--saga", "nobody")
    assert printed(database_url, "runs", "--key", "committed").count("\n") == 2
    assert printed(database_url, "runs", "--text", "NO WAY").count("\n") == 2


async def test_the_command_prints_json(database_url: str) -> None:
    await every_state(database_url)
    (line,) = printed(database_url, "runs", "--json", "--saga", "rollback_failed").splitlines()
    run = json.loads(line)
    assert re.fullmatch(ID, run.pop("id"))
    assert re.fullmatch(ID, run.pop("message_id"))
    assert datetime.fromisoformat(run.pop("created_at")) < datetime.fromisoformat(run.pop("ended_at"))
    assert 0 < run.pop("age") < 120
    assert run == {
        "service": "shop", "saga": "rollback_failed", "state": "rollback_failed", "step": "first",
        "key": "rollback_failed", "reason": None, "failure_type": "ValueError", "failure_message": "No way\nback",
        "waits_for": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    "age, seconds", [("90", 90), ("90s", 90), ("1.5min", 90), ("2m", 120), ("2 h", 7200), ("1d", 86400)]
)
def test_an_age_has_a_unit(database_url: str, age: str, seconds: int) -> None:
    assert duration(age) == timedelta(seconds=seconds)
    assert command(database_url, "runs", "--older-than", age).exit_code == 0


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--older-than", "soon"), "'soon' is no duration: write 90s, 15min, 2h or 1d"),
        (("--older-than", "-1"), "is no duration"),
        (("--state", "asleep"), "is not one of"),
        (("--stuck", "--state", "parked"), "--stuck stands for two states"),
    ],
)
def test_what_cannot_be_meant_is_refused(database_url: str, arguments: tuple[str, ...], says: str) -> None:
    result = command(database_url, "runs", *arguments)
    assert result.exit_code == 2
    assert says in result.output
