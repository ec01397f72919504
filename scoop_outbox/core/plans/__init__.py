"""Plans: what to ask the database, as generators of named statements. Drivers of the store run them; they do no I/O."""
