"""A batch of statements in one write and one wait, for either colour of connection.

psycopg's own pipeline waits on the socket once for each statement that it sends, and asks for types anew with each
set of parameters: for the short transactions of the engine that was most of the time spent. This generator speaks to
libpq through psycopg's wrapper instead: it sends everything, waits, and reads everything. Between two batches the
connection is an ordinary psycopg connection, which is how the user's code finds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import generators
from psycopg.abc import Buffer, PQGen
from psycopg.abc import Transformer as Dumps
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.waiting import Wait

from scoop_outbox.core.statement import SYNC, Batch, Rows
from scoop_outbox.store.adaptation import Adaptation
from scoop_outbox.store.arrays import ELEMENTS, Element, array

_LONG = {"read_outbox"}
"""Statements with long answers, which have bodies in them."""
_PIECES = 32
_PARAMETER = re.compile(rb"%(?:\((\w+)\)s(?:::(\w+)\[\])?|(%))")


class Query:
    """A statement as the server gets it: `$1` instead of `%(name)s`, and the names in order."""

    __slots__ = ("arrays", "dumped", "formats", "name", "order", "result", "text")

    def __init__(self, name: str, text: bytes) -> None:
        """Translate the named parameters; a name that occurs twice is one parameter."""
        order: dict[bytes, int] = {}
        elements: dict[int, Element] = {}

        def number(match: re.Match[bytes]) -> bytes:
            named, of, percent = match.groups()
            if percent:
                return b"%"
            place = order.setdefault(named, len(order))
            if of is None:
                return b"$%d" % (place + 1)
            elements[place] = ELEMENTS[of.decode()]
            return b"$%d::%s[]" % (place + 1, of)

        self.name = b"scoop_" + name.encode()
        self.text = _PARAMETER.sub(number, text)
        self.order = tuple(key.decode() for key in order)
        self.arrays = tuple((place, self.order[place], element) for place, element in elements.items())
        # Text, and no types: the server knows the types of its columns, so each statement is prepared once.
        self.dumped = [PyFormat.TEXT] * len(order)
        self.formats = [Format.BINARY if place in elements else Format.TEXT for place in range(len(order))]
        # Bodies would be twice as long in text. Numbers and times are as quick in either form.
        self.result = Format.BINARY if name in _LONG else Format.TEXT

    def dump(self, params: Mapping[str, Any], transformer: Dumps) -> list[Buffer | None]:
        """Return the parameters in the formats of the statement."""
        if not self.arrays:
            return list(transformer.dump_sequence([params[key] for key in self.order], self.dumped))
        values: list[Any] = [params[key] for key in self.order]
        for place, _, _ in self.arrays:
            values[place] = None
        dumped = list(transformer.dump_sequence(values, self.dumped))
        for place, key, element in self.arrays:
            dumped[place] = array(params[key], element)
        return dumped


class Pipeline:
    """Runs batches on one connection, and remembers what has been prepared there.

    Args:
        connection: in autocommit, of either colour; nothing else may use it while a batch runs.
        queries: every statement by name.
    """

    def __init__(
        self, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], queries: Mapping[str, Query]
    ) -> None:
        """Prepare nothing yet."""
        self._pgconn = connection.pgconn
        self._has_a_thread = isinstance(connection, psycopg.Connection)
        self._transformer = Transformer(Adaptation(connection))
        self._queries = queries
        self._prepared: dict[str, bytes] = {}
        self._failures = 0

    def run(self, batch: Batch) -> PQGen[list[Rows]]:
        """Run statements in order and return the rows of each; to be driven by `connection.wait`.

        Raises:
            psycopg.Error: of the first statement that failed; those after it, up to the next sync, were not executed.
        """
        if self._has_a_thread and len(batch) == 1 and batch[0][0] in _LONG:
            return self._fetch(batch)
        pgconn = self._pgconn
        pgconn.enter_pipeline_mode()
        results: list[PGresult] = []
        try:
            sent = self._send(batch)
            yield from generators.send(pgconn)
            while len(results) <= len(sent):  # one more: the sync at the end
                while pgconn.is_busy():
                    ready = yield Wait.R
                    # libpq reads little at a time. To wait for each piece is most of the work of a long answer, more
                    # so while other threads are busy.
                    for _ in range(_PIECES if ready else 1):
                        pgconn.consume_input()
                        if not pgconn.is_busy():
                            break
                results += yield from generators.fetch_many(pgconn)
        except psycopg.OperationalError as error:
            # Why the server has ended the connection, if it could still say so: that comes before the end.
            for result in results:
                if result.status == ExecStatus.FATAL_ERROR:
                    raise psycopg.errors.error_from_result(result, encoding="utf-8") from error
            raise
        finally:
            self._leave()
        return self._read(sent, results)

    def _fetch(self, batch: Batch) -> list[Rows]:
        """Run one statement and wait inside libpq: the interpreter is needed once, not for each piece of the rows."""
        ((name, params),) = batch
        pgconn, query = self._pgconn, self._queries[name]
        sent: list[str | None] = [None]
        results: list[PGresult] = []
        prepared_name = self._prepared.get(name)
        if prepared_name is None:
            prepared_name = self._prepared[name] = self._prepared_name(query)
            sent.insert(0, name)
            results.append(pgconn.prepare(prepared_name, query.text))
        if not results or results[0].status == ExecStatus.COMMAND_OK:
            # None is null, whatever the wrapper says of its parameter.
            values: Any = query.dump(params, self._transformer)
            results.append(pgconn.exec_prepared(prepared_name, values, query.formats, query.result))
        return self._read(sent, results)

    def _prepared_name(self, query: Query) -> bytes:
        return b"%s_%d" % (query.name, self._failures)

    def _send(self, batch: Batch) -> list[str | None]:
        """Send everything, and return what was sent: None for what is asked, a name for its preparation."""
        pgconn, prepared = self._pgconn, self._prepared
        sent: list[str | None] = []
        for name, params in batch:
            if name == SYNC.name:
                pgconn.pipeline_sync()
                sent.append(None)
                continue
            query = self._queries[name]
            prepared_name = prepared.get(name)
            if prepared_name is None:
                prepared_name = prepared[name] = self._prepared_name(query)
                pgconn.send_prepare(prepared_name, query.text)
                sent.append(name)
            pgconn.send_query_prepared(
                prepared_name, query.dump(params, self._transformer), query.formats, query.result
            )
            sent.append(None)
        pgconn.pipeline_sync()
        return sent

    def _read(self, sent: list[str | None], results: list[PGresult]) -> list[Rows]:
        rows: list[Rows] = []
        for preparation, result in zip(sent, results, strict=False):
            if result.status == ExecStatus.TUPLES_OK:
                self._transformer.set_pgresult(result)
                rows.append(self._transformer.load_rows(0, result.ntuples, tuple))
            elif result.status not in (ExecStatus.COMMAND_OK, ExecStatus.PIPELINE_SYNC):
                error = psycopg.errors.error_from_result(result, encoding="utf-8")
                self._forget(sent, everything=isinstance(error, psycopg.errors.InvalidSqlStatementName))
                raise error
            elif preparation is None:
                rows.append([])
        return rows

    def _forget(self, sent: list[str | None], *, everything: bool) -> None:
        """After an error nobody knows which preparations took place: use other names from now on."""
        self._failures += 1
        if everything:  # somebody deallocated all that was prepared on this connection
            self._prepared.clear()
            return
        for name in sent:
            if name is not None:
                del self._prepared[name]

    def _leave(self) -> None:
        """Leave pipeline mode; a connection whose answers were not all read is of no use any more."""
        if self._pgconn.status != ConnStatus.OK:
            return
        try:
            self._pgconn.exit_pipeline_mode()
        except psycopg.OperationalError:
            self._pgconn.finish()
