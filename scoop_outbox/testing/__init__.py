"""What the tests of users and of adapters need, and production does not."""

import os

REQUIRE_SERVERS = "SCOOP_OUTBOX_REQUIRE_SERVERS"


def servers_required() -> bool:
    """Tell whether a server that cannot be had is a failure of the test run and not a reason to skip.

    Returns:
        True when ``SCOOP_OUTBOX_REQUIRE_SERVERS`` is set to anything but ``0`` or nothing. The gate sets it,
        so that a test which silently never runs cannot pass for one that succeeds.
    """
    return os.environ.get(REQUIRE_SERVERS, "") not in {"", "0"}
