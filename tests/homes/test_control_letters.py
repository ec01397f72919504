"""What another home has said, and became a dead letter, is taken in once it can be believed and understood."""

from __future__ import annotations

import json
import uuid

import pytest

from scoop_outbox import AsyncDeadLetters, DeadLetters
from scoop_outbox.operations.dead_letters import Replay, ReplayStatus
from scoop_outbox.wire import control
from scoop_outbox.wire.control import Kind
from tests.homes.conftest import MakeHome
from tests.homes.ear import Child, Ear, Peer, delivered
from tests.homes.homes import running
from tests.homes.test_restored import url_of
from tests.homes.test_signatures import NEW, OLD, family
from tests.integration.seeing import command, printed
from tests.scenarios.shop import LONG, Journal, launches
from tests.waiting import until


async def replayed(ear: Ear) -> Replay:
    """Replay the newest dead letter."""
    ((letter,),) = ear.ask("select max(id) from dead_letter")
    async with AsyncDeadLetters(ear.home.url) as letters:
        return await letters.replay(letter)


async def test_what_is_understood_now_is_taken_in(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Peer()
    listed = {"revision": 3, "subscriptions": [{"topic": "t", "service": "s", "saga": "s"}], "known": {}}
    await ear.hear(there.says(Kind.SUBSCRIPTIONS, **listed, version=2))
    answer = await replayed(ear)
    assert (answer.status, answer.reason) == (
        ReplayStatus.REFUSED,
        "no control message: it is of version 2, and only 1 is known here",
    )
    assert (ear.count("dead_letter"), ear.count("peer")) == (1, 0)
    monkeypatch.setattr(control, "VERSION", 2)  # as a newer version of this library does
    assert (await replayed(ear)).status is ReplayStatus.REPLAYED
    assert (ear.count("dead_letter"), ear.count("peer_subscription")) == (0, 1)
    assert [one["revision"] for one in ear.said(Kind.CONFIRMED)] == [3]


async def test_what_has_been_heard_since_counts(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    there, child = Peer(), Child(uuid.uuid4())
    await ear.hear(there.says(Kind.CONFIRMED, revision=1))
    ear.execute(
        "insert into child (message_id, service, saga, run_id, seq, ordinal, home) values (%s, %s, %s, %s, 1, 1, %s)",
        *(*child, uuid.uuid4(), there.sender.id),
    )
    news = json.loads(there.news(child.said(1, state="started")).envelope.body)
    await ear.hear(delivered(json.dumps({**news, "version": 2}).encode()))
    await ear.hear(there.news(child.said(2, state="committed", result=7)))
    monkeypatch.setattr(control, "VERSION", 2)
    assert (await replayed(ear)).status is ReplayStatus.REPLAYED
    assert ear.ask("select state, generation, open from child") == [("committed", 2, False)]


@pytest.mark.parametrize("whose", ["ours", "our name", "another header"])
async def test_who_may_not_say_it_is_refused(ear: Ear, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Peer("here" if whose == "our name" else "there")
    said = json.loads(speaker.says(Kind.CONFIRMED, revision=9).envelope.body)
    if whose == "ours":
        said["from"]["id"] = str((await ear.identity()).id)
    header = str(uuid.uuid4()) if whose == "another header" else None
    await ear.hear(delivered(json.dumps({**said, "version": 2}).encode(), header))
    monkeypatch.setattr(control, "VERSION", 2)
    answer = await replayed(ear)
    expected = {
        "ours": "said it itself",
        "our name": "has the name of this one",
        "another header": "is another home",
    }
    assert answer.status is ReplayStatus.REFUSED
    assert expected[whose] in answer.reason
    assert (ear.count("dead_letter"), ear.count("peer")) == (1, 0)


async def test_what_was_not_believed_is_taken_in_once_its_key_is_known(
    make_home: MakeHome, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, stock = make_home("orders", control_keys=[NEW, OLD]), make_home("stock", control_keys=[OLD, NEW])
    family(orders, stock)
    async with running(orders, stock):
        pass
    strict = make_home("orders", beside=orders, control_keys=NEW)
    strict.saga("root", "R", launches("C"), None)
    url = url_of(orders)
    async with strict.running(), stock.running():
        handle = await strict.app.launch("R", None)
        ended = "select from scoop_outbox.dead_letter where convert_from(body, 'UTF8') like '%%committed%%'"
        await until(lambda: strict.ask(ended), LONG)
        with DeadLetters(url) as letters:
            ids = list(letters.numbers())
            assert {letters.replay(one).reason for one in ids} == {
                "not believed: this process has no control keys, and the home has some"
            }
        monkeypatch.setenv("SCOOP_OUTBOX_CONTROL_KEYS", NEW)
        result = command(url, "dead-letters", "replay", "--all", "--service", "scoop.control.orders")
        assert result.exit_code == 1
        assert "it is signed with the key '2026', which is not among the control keys of this home" in result.stdout
        assert journal.of("root") == ["root-0"]
        monkeypatch.setenv("SCOOP_OUTBOX_CONTROL_KEYS", f"{NEW},{OLD}")
        assert "taken in as said by another home" in printed(url, "dead-letters", "replay", "--all")
        assert await handle.wait(LONG) is None
    assert journal.of("root") == ["root-0", "root-1"]
