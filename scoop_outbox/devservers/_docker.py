"""Servers in containers, where a Docker engine answers."""

import gc
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Final

from scoop_outbox.devservers._errors import ServerStartError

_START_SECONDS: Final = 120


def docker_answers() -> bool:
    """Tell whether containers can be started here."""
    if importlib.util.find_spec("docker") is None or importlib.util.find_spec("testcontainers") is None:
        return False
    import docker  # noqa: PLC0415 - only tests have it

    with warnings.catch_warnings():
        # A client that finds no engine leaves its socket to the garbage collector, which complains.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            with closing(docker.from_env()) as client:
                return bool(client.ping())
        except docker.errors.DockerException:
            return False
        finally:
            gc.collect()


@contextmanager
def run_container(
    image: str,
    port: int,
    environment: Mapping[str, str],
    ready: str,
    *,
    published: int | None = None,
    command: str | None = None,
) -> Iterator[tuple[str, int]]:
    """Run a server in a container, and yield the host and port at which this machine reaches it.

    Args:
        image: the image and its tag.
        port: where the server listens in the container.
        environment: the variables that configure it.
        ready: what it writes into its log once it serves clients; a regular expression.
        published: the port of this machine, for a server that has to know it; any free one without it.
        command: what it runs, if not what the image says.

    Raises:
        ServerStartError: it did not start.
    """
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - only tests have it
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy  # noqa: PLC0415

    container = DockerContainer(image).with_envs(**environment)
    container = container.with_bind_ports(port, published) if published else container.with_exposed_ports(port)
    if command is not None:
        container = container.with_command(command)
    container = container.waiting_for(LogMessageWaitStrategy(ready).with_startup_timeout(_START_SECONDS))
    with ExitStack() as stack:
        try:
            running = stack.enter_context(container)
            address = running.get_container_host_ip(), running.get_exposed_port(port)
        except Exception as error:
            # Docker's own words: an image that cannot be had, a port that is taken, a server that gives up.
            msg = f"A container of {image} did not start ({type(error).__name__}): {error}"
            raise ServerStartError(msg) from error
        yield address
