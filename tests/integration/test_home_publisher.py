"""The built-in broker: what the home itself refuses becomes a dead letter, and keeps out no other message."""

import pytest

from scoop_outbox._emission import emission
from tests.integration.relaying import ask, left, made, write
from tests.integration.taking_in import once, runs, service
from tests.waiting import until

# Contexts that are JSON for those who launch, and not for Postgres.
REFUSED = {
    "InvalidTextRepresentation 22P02": '{"a": NaN}',
    "StatementTooComplex 54001": f'{{"a": {"[" * 20_000}{"]" * 20_000}}}',
}


@pytest.mark.parametrize("error", REFUSED)
async def test_a_message_that_the_home_refuses_becomes_a_dead_letter_and_is_logged(
    database_url: str, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = service(database_url, on="topic")
    refused = emission("topic", 1, key="k", headers=None, context=REFUSED[error], awaited=False, depth=0)
    write(database_url, made(0, "k"), refused, made(2, "k"))

    async with app.running(worker=False):
        await until(lambda: left(database_url) == 0)

    assert runs(database_url) == once([0, 2])
    assert ask(database_url, "select message_id, origin, reason from dead_letter") == [
        (refused.message_id, "relay", error)
    ]
    (record,) = (one for one in caplog.records if one.name == "scoop_outbox.daemon.relay.home_publisher")
    why, _ = error.split()
    assert record.getMessage() == f"relay: message refused (message {refused.message_id} cannot be taken in: {why})"
    assert record.__dict__["message_id"] == str(refused.message_id)
