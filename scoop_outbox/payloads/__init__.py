"""Payloads: what a typed topic makes of a body."""
