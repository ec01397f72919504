"""What requests are answered, and how answers compare."""

import uuid
from typing import Any

import pytest

from scoop_outbox import ActiveRun, Answer, RollbackAnswer

RUN = ActiveRun(uuid.UUID(int=1), "shop", "root", "running")
REFUSED = RollbackAnswer(Answer.REFUSED_ACTIVE, (RUN,))


@pytest.mark.parametrize(
    "one, other, equal",
    [
        (RollbackAnswer(Answer.ACCEPTED), Answer.ACCEPTED, True),
        (RollbackAnswer(Answer.ACCEPTED), Answer.BUSY, False),
        (REFUSED, Answer.REFUSED_ACTIVE, True),
        (REFUSED, RollbackAnswer(Answer.REFUSED_ACTIVE, (RUN,)), True),
        (REFUSED, RollbackAnswer(Answer.REFUSED_ACTIVE), False),
        (REFUSED, "refused: active", False),
    ],
)
def test_q8_the_answer_to_a_rollback_equals_that_to_any_request(one: Any, other: Any, equal: bool) -> None:
    assert (one == other, other == one, one != other) == (equal, equal, not equal)
    assert hash(one) == hash(other) or not equal


def test_q8_both_say_whether_they_fulfil_what_was_asked_for() -> None:
    assert all(RollbackAnswer(answer).fulfils is answer.fulfils for answer in Answer)
