"""How failures are told: stack frames as data, root causes, and how much of each is kept."""
