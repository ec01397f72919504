"""Q18: what pruning leaves for whoever comes late, and what it hands to an archive."""

import json
from pathlib import Path

import pytest

from scoop_outbox import AcknowledgedWithin, ArchivedHierarchy
from scoop_outbox.app import service_of
from scoop_outbox.cli.retention import Archive
from scoop_outbox.core.plans import prune as plans
from scoop_outbox.core.plans.intake import take_in
from scoop_outbox.message import Envelope, uuid7
from tests.scenarios.conftest import MakeShop
from tests.scenarios.retention import MONTH, age, prune
from tests.scenarios.shop import LONG, Shop, launches
from tests.waiting import until

BY_ITSELF = """
update scoop_outbox.subscription set via_broker = service = 'audit', created_at = created_at - %(by)s
"""


async def taken_in(shop: Shop, envelope: Envelope, service: str) -> list[str]:
    """Take a message in for one service, as from a broker, and return what nobody there handles."""
    async with service_of(shop.app).home.driver() as driver:
        return await driver.run(take_in([envelope], service_of(shop.app).hints, service=service))


async def sagas(shop: Shop) -> list[str]:
    """Whose runs there are."""
    return [saga for (saga,) in await shop.ask("select saga from scoop_outbox.run order by saga")]


async def test_q18_a_service_that_was_down_still_gets_a_message_of_a_foreign_producer(make_shop: MakeShop) -> None:
    shop, audit = make_shop(), make_shop(service="audit")
    shop.saga("here", "R", None)
    audit.saga("audit", "R", None)
    for one in (shop, audit):
        await one.app.announce()
    # As with a broker that each service takes in from for itself.
    await shop.execute(BY_ITSELF, by=MONTH)
    message = Envelope(str(uuid7()), "R", None, b"1", "application/json", {})
    await taken_in(shop, message, "shop")
    async with shop.running(relay=False):
        await until(lambda: shop.ask("select from scoop_outbox.run where state = 'committed'"), LONG)
    await age(shop, MONTH)

    await prune(shop)
    assert await taken_in(shop, message, "audit") == []
    assert await sagas(shop) == ["audit", "here"]


@pytest.mark.builtin("a relay without a worker takes in what is launched")
async def test_q18_who_was_left_behind_handles_the_message_when_it_comes(make_shop: MakeShop) -> None:
    shop, audit = make_shop(), make_shop(service="audit")
    root = shop.app.saga("root", "R", strategy=AcknowledgedWithin(0.2))
    shop.step(root, "0", launches("C"))
    audit.saga("audit", "C", None)
    for one in (shop, audit):
        await one.app.announce()
    async with shop.running(worker=False):
        handle = await shop.app.launch("R", None)
        await until(lambda: shop.ask("select from scoop_outbox.run"), LONG)
    async with shop.running(relay=False):  # what it launches stays in the outbox
        await handle.wait(LONG)
    ((message_id, body, headers),) = await shop.ask("select message_id, body, headers from scoop_outbox.outbox")
    await age(shop, MONTH)

    await prune(shop)
    await taken_in(shop, Envelope(str(message_id), "C", None, bytes(body), "application/json", headers), "audit")
    assert await sagas(shop) == ["audit", "root"]


async def test_q18_an_archive_is_handed_each_hierarchy_once(mixed: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "RUNS_AT_ONCE", 2)
    mixed.saga("root", "R", launches("C"))
    mixed.saga("child", "C", None)
    async with mixed.running():
        for handle in [await mixed.app.launch("R", None) for _ in range(5)]:
            await handle.wait(LONG)
    await age(mixed, MONTH)
    archived: list[ArchivedHierarchy] = []

    await prune(mixed, archive=archived.extend, pause=0.0)

    assert len(archived) == 5
    assert await sagas(mixed) == []


def test_q18_a_line_that_was_torn_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "archive"
    one = ArchivedHierarchy(uuid7(), erased_only=False, rows={"run": [{"id": 1}]})
    file.write_text(one.to_json()[:-5], encoding="utf-8")  # killed, or the disk was full

    Archive(file).one(one)
    Archive(file).one(one)

    torn, *lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["run"] for line in lines] == [[{"id": 1}]] * 2
    with pytest.raises(json.JSONDecodeError):
        json.loads(torn)
