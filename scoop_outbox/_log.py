"""Loggers of the library: their lines carry fields, whatever logging a program has set up."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module, as `logging.getLogger` does, but for fields (`extra=`) that can never raise.

    `logging` raises `KeyError` for a field that a record has already. A program with a record factory of its own, which
    gives each record its `service` or `host`, would end our daemons with that, at their first line. Our own value wins.
    """
    logger = logging.getLogger(name)

    make = logger.makeRecord

    def make_record(
        name: str,
        level: int,
        path: str,
        line: int,
        text: object,
        args: Any,
        error: Any,
        function: str | None = None,
        extra: Mapping[str, object] | None = None,
        stack: str | None = None,
    ) -> logging.LogRecord:
        record = make(name, level, path, line, text, args, error, function, None, stack)
        vars(record).update({field: value for field, value in (extra or {}).items() if value is not None})
        return record

    vars(logger)["makeRecord"] = make_record  # of this logger alone: the class is the program's
    return logger
