"""The one home of SQL: statements by name, the schema, and two drivers that run plans."""
