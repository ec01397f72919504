"""Homes, as operators see to them: one that has moved, and others that are gone."""

from __future__ import annotations

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans.draining import Draining, drain_home, read_draining
from scoop_outbox.core.plans.gone_homes import forget_home
from scoop_outbox.core.plans.homes import read_identity
from scoop_outbox.core.plans.restored import move_home
from scoop_outbox.errors import DefinitionError
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.store.standalone import OpenedDatabase

log = get_logger(__name__)


class Homes(OpenedDatabase):
    """The home of one database, and the others that it knows. Use it in a `with` block, or close it.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema is not usable.
    """

    def __init__(self, database: str, *, schema: str = DEFAULT_SCHEMA) -> None:
        """Open nothing yet."""
        super().__init__(database, schema, "homes")

    def move(self) -> int:
        """Note that the home is in this database from now on, and nowhere else.

        It may be older than what other homes have heard of it, if it was restored from a backup. So they are told, and
        ask after children that they wait for here; and this home asks after children in theirs.

        Returns:
            After how many children this home asks.
        """
        return self._run(move_home(self._home.failures))

    def drain(self, *, resume: bool = False, alone: bool = False) -> Draining:
        """Have other homes of its services preferred to this one, and say what is left here.

        What has begun here ends here, and so does what somebody waits for here already. Call it again to see what is
        left then: each time, the other homes are asked for how many children here they wait.

        Args:
            resume: share with the other homes again.
            alone: drain it even if it has sagas that no other home has: what is launched for them still comes here.

        Raises:
            DefinitionError: it has such sagas; or it has no name, and cooperates with nobody.
        """
        if self._run(read_identity()).name is None:
            raise DefinitionError("this home has no name, and cooperates with no other: nobody could take over from it")
        found = self._run(read_draining())
        if not resume and not alone and found.alone and not found.draining:
            sagas = ", ".join(f"{saga} of {service}" for service, saga in found.alone)
            raise DefinitionError(
                f"no other home has these sagas: {sagas}. Start a worker of theirs in another home first, in the same "
                "group or on the same queue, or forget them: scoop-outbox handlers forget"
            )
        self._run(drain_home(draining=not resume))
        if found.draining is not resume:
            return found  # what the others have answered last; they have been asked again
        if resume:
            log.warning("home: shares again with other homes of its services")
        else:
            log.warning("home: is being drained")
        return self._run(read_draining())

    def forget(self, name: str) -> int | None:
        """Forget another home that is gone for good, and end what waits for children there: they have failed.

        Args:
            name: its name or id.

        Returns:
            How many children have been ended; None when no home of that name or id is known.
        """
        forgotten = self._run(forget_home(name, self._home.failures))
        if forgotten is not None:
            log.warning("home: forgotten (%d children failed)", forgotten, extra={"home": name})
        return forgotten
