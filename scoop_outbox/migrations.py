"""For a program with an Alembic of its own: its autogenerate leaves the tables of scoop_outbox alone.

With `include_schemas=True`, autogenerate proposes to drop every table that the program does not know. Ours have
migrations of their own (`scoop-outbox migrate`). In the program's `env.py`:

    from scoop_outbox.migrations import include_name

    context.configure(..., include_schemas=True, include_name=include_name)

`include_object` does the same for who filters by objects. Where the schema has another name, it is
`include_name=Without("shop_outbox").include_name`. A program that has such a function asks ours in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from scoop_outbox.store.schema import DEFAULT_SCHEMA, checked_schema


class Without:
    """Answers Alembic what to look at: everything but the schema that holds the tables of scoop_outbox.

    Args:
        schema: that schema, as for `Scoop`. Nothing else is in it.

    Raises:
        DefinitionError: it is no usable name.
    """

    def __init__(self, schema: str = DEFAULT_SCHEMA) -> None:
        """See the class."""
        self._schema = checked_schema(schema)

    def include_name(self, name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
        """Return whether to look at something in the database that has this name; to be given to Alembic.

        Args:
            name: the name; None is the schema that needs none.
            type_: what it is: `schema`, `table` and so on.
            parent_names: what it is part of.
        """
        return parent_names.get("schema_name") != self._schema and not (type_ == "schema" and name == self._schema)

    def include_object(self, object_: object, _: str | None, type_: str, *__: object) -> bool:
        """Return whether to compare something; to be given to Alembic.

        Args:
            object_: a part of SQLAlchemy's metadata.
            type_: what it is: `table`, `column` and so on.
        """
        table = object_ if type_ == "table" else getattr(object_, "table", None)
        return getattr(table, "schema", None) != self._schema


include_name = Without().include_name
"""Leaves the schema `scoop_outbox` alone."""

include_object = Without().include_object
"""Leaves the tables in the schema `scoop_outbox` alone."""
