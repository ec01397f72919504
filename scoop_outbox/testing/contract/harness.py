"""What whoever tests an adapter brings along: the broker, and what the tests may do to its server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto

from scoop_outbox.broker import plugins
from scoop_outbox.broker.protocol import Broker, Subscription


class Power(Enum):
    """What the tests may do besides talking to the broker; each test says which it needs."""

    STOP = auto()  # `Harness.stop` and `Harness.start`
    FREEZE = auto()  # `Harness.freeze` and `Harness.thaw`
    FOREIGN = auto()  # `Harness.publish_foreign`
    PROCESSES = auto()  # other processes reach the broker by `Harness.url`, and can be killed


class Harness:
    """A broker under test. Subclass it to give the tests power over the server.

    Args:
        url: the broker's URL, for which an adapter is installed; None is the built-in broker.
        settings: passed on to the adapter. Let it notice within seconds that a member of a group has died.
        oversize: bytes of a body that the broker must refuse, if it limits the size of messages.
    """

    def __init__(
        self, url: str | None = None, settings: Mapping[str, object] | None = None, *, oversize: int = 16 * 1024 * 1024
    ) -> None:
        """Open nothing."""
        self.url = url
        self.settings = dict(settings or {})
        self.oversize = oversize

    def broker(self) -> Broker | None:
        """Return the broker as its entry point makes it, or None for the built-in one."""
        return None if self.url is None or plugins.is_builtin(self.url) else plugins.load(self.url, self.settings)

    async def create(self, topics: Sequence[str], subscription: Subscription | None) -> None:
        """Create what publishing on `topics` and receiving `subscription` needs.

        A topic must let two members of a group share its messages.
        """
        broker = self.broker()
        if broker is not None:
            await broker.topology(topics, subscription, create=True)

    async def publish_foreign(
        self,
        topic: str,  # noqa: ARG002 - these are for those who override it
        key: bytes | None,  # noqa: ARG002
        body: bytes,  # noqa: ARG002
        headers: Mapping[str, str],  # noqa: ARG002
    ) -> None:
        """Publish as a program does that knows nothing of us, by the broker's own client: no header of ours."""
        raise _lacking(Power.FOREIGN)

    async def stop(self) -> None:
        """Stop the server; what it has acknowledged is kept."""
        raise _lacking(Power.STOP)

    async def start(self) -> None:
        """Start the server that was stopped, at the same address, and return once it serves."""
        raise _lacking(Power.STOP)

    async def freeze(self) -> None:
        """Stop the server where it is (SIGSTOP): connections stay open, and nothing answers."""
        raise _lacking(Power.FREEZE)

    async def thaw(self) -> None:
        """Let a server that was frozen go on (SIGCONT)."""
        raise _lacking(Power.FREEZE)


def _lacking(power: Power) -> TypeError:
    return TypeError(f"a harness that declares {power} overrides {' and '.join(METHODS[power])}")


METHODS: Mapping[Power, tuple[str, ...]] = {
    Power.STOP: ("stop", "start"),
    Power.FREEZE: ("freeze", "thaw"),
    Power.FOREIGN: ("publish_foreign",),
}
