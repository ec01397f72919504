"""A batch of statements in one write and one wait, for either colour of connection.

psycopg's own pipeline waits on the socket once for each statement that it sends, and asks for types anew with each
set of parameters: for the short transactions of the engine that was most of the time spent. This generator speaks to
libpq through psycopg's wrapper instead: it sends everything, waits, and reads everything. Between two batches the
connection is an ordinary psycopg connection, which is how the user's code finds it.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import generators
from psycopg.abc import PQGen
from psycopg.adapt import Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.waiting import Wait

from scoop_outbox.core.statement import BEGIN, COMMIT, SYNC, Batch, Rows
from scoop_outbox.store.adaptation import Adaptation
from scoop_outbox.store.mode import Mode
from scoop_outbox.store.query import LONG, Query

_PIECES = 32


class Pipeline:
    """Runs batches on one connection, and remembers what has been prepared there.

    Args:
        connection: in autocommit, of either colour; nothing else may use it while a batch runs.
        mode: every statement by name, and whether a pooler stands between: then nothing is prepared, and each
            transaction is set up anew.
    """

    def __init__(self, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], mode: Mode) -> None:
        """Prepare nothing yet."""
        self._pgconn = connection.pgconn
        self._has_a_thread = isinstance(connection, psycopg.Connection)
        self._transformer = Transformer(Adaptation(connection))
        self._queries = mode.queries
        self._pooled = mode.pooled
        self._set_up = mode.set_up() if mode.pooled else []
        self._prepared: dict[str, bytes] = {}
        self._failures = 0

    def run(self, batch: Batch) -> PQGen[list[Rows]]:
        """Run statements in order and return the rows of each; to be driven by `connection.wait`.

        Raises:
            psycopg.Error: of the first statement that failed; those after it, up to the next sync, were not executed.
        """
        if self._has_a_thread and len(batch) == 1 and batch[0][0] in LONG and not self._set_up:
            return self._fetch(batch)
        if self._set_up and self._pgconn.transaction_status == TransactionStatus.IDLE:
            return (yield from self._run_set_up(batch))
        return (yield from self._run(batch))

    def _run_set_up(self, batch: Batch) -> PQGen[list[Rows]]:
        """Run a batch in a transaction that begins with its settings: none survive it behind a pooler."""
        if batch[0].name == BEGIN.name:
            rows = yield from self._run([batch[0], *self._set_up, *batch[1:]])
            return [rows[0], *rows[1 + len(self._set_up) :]]
        rows = yield from self._run([BEGIN, *self._set_up, *batch, COMMIT])
        return rows[1 + len(self._set_up) : -1]

    def _run(self, batch: Batch) -> PQGen[list[Rows]]:
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
        if self._pooled:
            asked: Any = query.dump(params, self._transformer)
            results.append(pgconn.exec_params(query.text, asked, None, query.formats, Format.BINARY))
            return self._read(sent, results)
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
            if self._pooled:
                values = query.dump(params, self._transformer)
                # In binary: what a date looks like in text is a matter of settings.
                pgconn.send_query_params(query.text, values, None, query.formats, Format.BINARY)
                sent.append(None)
                continue
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
