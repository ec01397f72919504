"""Intake: takes the messages of one service from a broker into its home."""
