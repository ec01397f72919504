"""The machine: rules as pure functions, and what to ask the database as plans.

No I/O, no clock and no randomness in here: facts come in, decisions and statements go out.
"""
