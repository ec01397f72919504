"""What operators do, and their programs: each needs a database's URL, and no application."""
