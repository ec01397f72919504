"""What the inbox does when the database refuses even a dead letter."""

from dataclasses import replace
from typing import Any, cast

import psycopg
import pytest

from scoop_outbox.daemon.intake.inbox import Inbox
from scoop_outbox.daemon.intake.validation import Validation
from scoop_outbox.wire.limits import Limits
from tests.fake_broker import message


class Refusing:
    """A database whose tables take nothing."""

    def __init__(self) -> None:
        self.asked = 0

    async def run(self, _: Any) -> Any:
        self.asked += 1
        raise psycopg.errors.CheckViolation


async def test_a_dead_letter_that_is_refused_keeps_its_reason_and_says_where_the_message_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    database = Refusing()
    inbox = Inbox("shop", Validation("shop", {}, {}, Limits()), cast("Any", None))
    with pytest.raises(psycopg.errors.CheckViolation):
        await inbox.store(cast("Any", database), [replace(message(7), defect="its header scoop-id is no UUID")])
    assert database.asked == 1, "the defect is not replaced by another one"
    (record,) = caplog.records
    assert (
        "intake: dead letter cannot be stored (service shop, position orders[0]@7: CheckViolation"
        in record.getMessage()
    )
