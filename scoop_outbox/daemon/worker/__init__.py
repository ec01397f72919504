"""The worker: executes the runs of one service."""
