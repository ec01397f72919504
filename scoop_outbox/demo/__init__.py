"""The demonstration: an order flow of four services."""
