"""Which topics are those of homes."""

import pytest

from scoop_outbox import DefinitionError, Scoop
from scoop_outbox.wire.control import is_control_topic, is_reserved


@pytest.mark.parametrize("topic", ["scoop.control.stock", "control.stock", "x.y.control.a-b_c.d"])
def test_a_control_topic(topic: str) -> None:
    assert is_control_topic(topic)


@pytest.mark.parametrize(
    "topic", ["payments", "scoop.homes", "scoop.control.", "scoop.control.a b", "control", "xcontrol.a"]
)
def test_no_control_topic(topic: str) -> None:
    assert not is_control_topic(topic)


@pytest.mark.parametrize(
    "topic", ["scoop.control.stock", "scoop.homes", "amq.topic/scoop.control.stock", "x/scoop.homes"]
)
async def test_nothing_is_launched_on_what_homes_speak_on(topic: str) -> None:
    assert is_reserved(topic)
    app = Scoop("shop", database="postgresql://localhost/nowhere")
    with pytest.raises(DefinitionError, match="is what homes speak on"):
        await app.launch(topic, {})


@pytest.mark.parametrize("topic", ["scoop.homes.news", "my.scoop.control", "homes", "scoop"])
def test_other_topics_are_nobodys(topic: str) -> None:
    assert not is_reserved(topic)
