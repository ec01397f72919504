"""The demonstration: an order flow of four services, each a process of its own.

Read `orders` first: it is the saga that the others take part in. Then `stock`, `payments` and `shipping`. The other
modules start these services, hand them orders, and show what came of it.
"""
