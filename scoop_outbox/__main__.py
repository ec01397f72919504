"""`python -m scoop_outbox` is the command line."""

from scoop_outbox.cli import main

main()
