"""The contract that every adapter keeps, as tests: see docs/writing-an-adapter.md.

`BrokerContract` tests publishers and consumers, `ServiceContract` whole services over the broker. A test module
subclasses both, says which features the broker has and which powers over its server the tests have, and defines the
fixture `harness`.
"""

import pytest

for _module in (
    "selection",
    "trial",
    "publishing",
    "receiving",
    "preparing",
    "groups",
    "outages",
    "services",
    "service_outages",
):
    pytest.register_assert_rewrite(f"{__name__}.{_module}")

from scoop_outbox.testing.contract.contracts import BrokerContract, ServiceContract  # noqa: E402
from scoop_outbox.testing.contract.harness import Harness, Power  # noqa: E402

__all__ = ["BrokerContract", "Harness", "Power", "ServiceContract"]
