"""The other ceiling: the same statements from pgbench, which is written in C and has nothing else to do."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from pathlib import Path

from sqlalchemy import make_url

from benchmarks.control import Control
from benchmarks.sagas import SERVICE, STEPS
from scoop_outbox.devservers._postgres_installation import PostgresNotFoundError, find_binaries

# Ids are made of the numbers of the client and the run: nothing is read, as in the ceiling of psycopg.
_ID = "('01920000-0000-7000-8000-' || lpad(to_hex({}), 12, '0'))::uuid"
_FILL = f"""
insert into message (id, topic, body, content_type, headers)
select {_ID.format("n")}, 'steps.pgbench', '{{}}', 'application/json', '{{}}'
from generate_series(%(first)s::bigint, %(last)s::bigint) n;
"""
_FILL_RUN = f"""
insert into run (id, message_id, service, saga, lineage)
select {_ID.format("n")}, {_ID.format("n")}, %(service)s, 'pgbench', array[{_ID.format("n")}]
from generate_series(%(first)s::bigint, %(last)s::bigint) n
"""
_FILL_MAIL = f"""
insert into mailbox (id, service, saga, run_id, due) overriding system value
select n, %(service)s, 'pgbench', {_ID.format("n")}, now()
from generate_series(%(first)s::bigint, %(last)s::bigint) n
"""
_STEP = f"""\\startpipeline
begin;
insert into step (run_id, seq, step, kind, iteration, attempt, state, started_at, ended_at, worker) \
values ({_ID.format(":id::bigint")}, SEQ, 'step SEQ', 'step', 0, 0, 'committed', clock_timestamp(), \
statement_timestamp(), '{"0" * 36}');
update run set state = STATE, step = 'step SEQ', next_step = NEXT, seq = SEQ, instance = SEQ, iteration = 0, \
attempt = 0, handled = 0, not_before = null, context = null, result = null, ended_at = ENDED \
where id = {_ID.format(":id::bigint")};
MAIL
commit;
\\endpipeline
"""
_FIRST_ONES = {"STATE": "'running'", "NEXT": "'next step'", "ENDED": "null", "MAIL\n": ""}
_LAST_ONE = {
    "STATE": "'committed'",
    "NEXT": "null",
    "ENDED": "statement_timestamp()",
    "MAIL": "delete from mailbox where id = :id;",
}
_RATE = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


def _script() -> str:
    script = "\\set n :n + 1\n\\set id :first + :client_id * :count + :n\n"
    for seq in range(1, STEPS + 1):
        step = _STEP.replace("SEQ", str(seq))
        for word, meaning in (_LAST_ONE if seq == STEPS else _FIRST_ONES).items():
            step = step.replace(word, meaning)
        script += step
    return script


def program() -> Path | None:
    """Return pgbench, that of the server's own installation if possible."""
    try:
        beside = find_binaries().folder / "pgbench"
    except PostgresNotFoundError:
        beside = None
    if beside is not None and beside.exists():
        return beside
    found = shutil.which("pgbench")
    return None if found is None else Path(found)


class Pgbench:
    """Measures one database again and again, each time with runs of its own."""

    def __init__(self, control: Control, executable: Path) -> None:
        self._control = control
        self._program = executable
        self._next = 1_000_000_000  # far from the ids of mail that come from the sequence

    async def steps_per_second(self, count: int, slots: int) -> float:
        """Execute so many runs on so many connections and return the rate of transactions."""
        each = max(count // slots, 1)
        first = self._next
        self._next += (each + 1) * slots + each
        span = {"first": first, "last": self._next - 1}
        await self._control.all(_FILL, span)
        await self._control.all(_FILL_RUN, span | {"service": SERVICE + " pgbench"})
        await self._control.all(_FILL_MAIL, span | {"service": SERVICE + " pgbench"})
        await self._control.settle("mailbox")
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "steps.sql"
            script.write_text(_script(), encoding="ascii")
            variables = (("first", first), ("count", each + 1), ("n", -1))
            answer = await self._call(
                *("-n", "-M", "prepared", "-f", str(script), "-t", str(each)),
                *("-c", str(slots), "-j", str(min(slots, 2))),
                *(part for name, value in variables for part in ("-D", f"{name}={value}")),
            )
        rate = _RATE.search(answer)
        if rate is None:
            raise RuntimeError(f"pgbench said nothing of its rate: {answer}")
        return float(rate[1]) * STEPS

    async def _call(self, *arguments: str) -> str:
        url = make_url(self._control.url)
        environment = {
            "PGHOST": str(url.host),
            "PGPORT": str(url.port or 5432),
            "PGUSER": str(url.username),
            "PGPASSWORD": str(url.password or ""),
            "PGDATABASE": str(url.database),
            "PGOPTIONS": "-c search_path=scoop_outbox,public",
        }
        process = await asyncio.create_subprocess_exec(
            self._program,
            *arguments,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        answer = output.decode(errors="replace")
        if process.returncode != 0:
            raise RuntimeError(f"pgbench failed: {answer}")
        return answer
