"""What Alembic runs: migrations on the connection that `scoop_outbox.store.migrate` hands over."""

from alembic import context

from scoop_outbox.store.schema import tables

schema = context.config.attributes["schema"]
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables(schema),
    version_table_schema=schema,
    include_schemas=True,
    transactional_ddl=False,  # the caller's transaction holds everything, the lock included
)
context.run_migrations()
