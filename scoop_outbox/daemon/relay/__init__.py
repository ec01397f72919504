"""The relay: publishes the outbox of one home."""
