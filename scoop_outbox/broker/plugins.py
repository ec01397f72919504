"""Finds the adapter for a broker URL among the installed distributions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from scoop_outbox.broker.protocol import Broker
from scoop_outbox.errors import BrokerError

GROUP = "scoop_outbox.brokers"

_FORM = "it looks like kafka://host:9092 or amqp://user:password@host:5672"
_KNOWN = {"kafka": "scoop-outbox-kafka", "amqp": "scoop-outbox-rabbitmq", "amqps": "scoop-outbox-rabbitmq"}


def is_builtin(url: str | None) -> bool:
    """Tell whether a broker URL means the built-in broker, the home's own Postgres.

    Raises:
        BrokerError: the URL cannot be parsed.
    """
    return url is None or _scheme(url) in ("postgresql", "postgres")


def _scheme(url: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError:
        # The URL itself is not shown: it may hold a password.
        raise BrokerError(f"the broker URL cannot be parsed; {_FORM}") from None


def load(url: str, settings: Mapping[str, object] | None = None) -> Broker:
    """Return the broker that serves a URL.

    Args:
        url: the broker's URL.
        settings: passed on to the adapter, on top of those in the URL.

    Raises:
        BrokerError: no installed adapter knows the URL's scheme, or the adapter refuses URL or settings.
    """
    scheme = _scheme(url)
    if "://" not in url:
        raise BrokerError(f"the broker URL has no scheme; {_FORM}")
    # Capitals in a scheme are nothing that an adapter need know of.
    url = scheme + url.strip()[len(scheme) :]
    for entry in entry_points(group=GROUP, name=scheme):
        broker: Broker = entry.load()(url, dict(settings or {}))
        return broker
    if scheme in _KNOWN:
        raise BrokerError(f"no adapter for {scheme}:// is installed: pip install {_KNOWN[scheme]}")
    installed = sorted(entry.name for entry in entry_points(group=GROUP))
    raise BrokerError(
        f"no broker is known for the scheme {scheme!r}: use kafka://, amqp://, postgresql:// or leave the URL out"
        + (f" (installed adapters: {', '.join(installed)})" if installed else "")
    )
