"""The launcher that tests, the demonstration and benchmarks get their Postgres from."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from scoop_outbox.devservers import _postgres_installation
from scoop_outbox.devservers.postgres import (
    TEST_SETTINGS,
    PostgresNotFoundError,
    PostgresServer,
    PostgresStartError,
    postgres_for_tests,
    start_postgres,
)
from tests.waiting import until_blocking

INSTALLED = list(dict.fromkeys(candidate.folder for candidate in _postgres_installation.candidates()))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def server(data: Path) -> Iterator[PostgresServer]:
    with start_postgres(data, settings=TEST_SETTINGS) as server:
        yield server


def ask(url: str, question: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(question.encode()).fetchone()
    assert row is not None
    return row[0]


def write_row(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (number integer)")
        connection.execute("INSERT INTO kept VALUES (1)")


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_what_was_committed_survives_stop_and_start(server: PostgresServer) -> None:
    write_row(server.url)
    url = server.url
    server.stop()
    assert server.pid is None
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    server.start()
    assert server.url == url
    assert ask(url, "SELECT count(*) FROM kept") == 1


def test_what_was_committed_survives_kill_and_start(server: PostgresServer) -> None:
    write_row(server.url)
    url = server.url
    with psycopg.connect(url) as connection:
        backend = connection.info.backend_pid
        server.kill()
        assert not runs(backend)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        connection.close()
    server.start()
    assert server.url == url
    assert ask(url, "SELECT count(*) FROM kept") == 1


def test_a_kill_from_outside_is_noticed_and_recovered(server: PostgresServer, data: Path) -> None:
    write_row(server.url)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    until_blocking(lambda: server.pid is None)
    assert (data / "cluster" / "postmaster.pid").exists()
    server.start()
    assert ask(server.url, "SELECT count(*) FROM kept") == 1


def test_another_server_continues_on_the_same_data(server: PostgresServer, data: Path) -> None:
    write_row(server.url)
    server.kill()
    with start_postgres(data) as other:
        assert ask(other.url, "SELECT count(*) FROM kept") == 1


def test_a_stale_status_file_with_the_number_of_a_living_process_is_no_obstacle(
    server: PostgresServer, data: Path
) -> None:
    server.kill()
    status = data / "cluster" / "postmaster.pid"
    lines = status.read_text(encoding="utf-8").splitlines()
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as bystander:
        status.write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n", encoding="utf-8")
        server.start()
        assert ask(server.url, "SELECT 1") == 1
        assert bystander.poll() is None


def test_two_servers_do_not_share_data(server: PostgresServer, data: Path) -> None:
    with pytest.raises(PostgresStartError, match="in use by another server"):
        start_postgres(data)
    assert ask(server.url, "SELECT 1") == 1


def test_two_servers_run_side_by_side(server: PostgresServer, tmp_path: Path) -> None:
    with start_postgres(tmp_path / "other", settings=TEST_SETTINGS) as other:
        assert other.url != server.url
        assert ask(other.url, "SELECT 1") == ask(server.url, "SELECT 1")


def test_start_and_stop_may_be_repeated(server: PostgresServer) -> None:
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    server.kill()
    assert server.pid is None


def test_settings_are_applied_and_the_default_is_durable(server: PostgresServer, tmp_path: Path) -> None:
    assert ask(server.url, "SELECT current_setting('fsync')") == "off"
    assert ask(server.url, "SELECT current_setting('max_connections')") == "200"
    with start_postgres(tmp_path / "durable") as durable:
        assert ask(durable.url, "SELECT current_setting('fsync')") == "on"


def test_a_refused_setting_is_told_with_the_reason(data: Path) -> None:
    with pytest.raises(PostgresStartError, match="no_such_setting"):
        start_postgres(data, settings={"no_such_setting": "1"})
    with start_postgres(data) as server:
        assert ask(server.url, "SELECT 1") == 1


def test_a_cluster_whose_making_was_interrupted_is_made_anew(data: Path) -> None:
    (data / "cluster.new").mkdir(parents=True)
    (data / "cluster.new" / "PG_VERSION").write_text("1\n", encoding="ascii")
    with start_postgres(data, settings=TEST_SETTINGS) as server:
        assert ask(server.url, "SELECT 1") == 1


def test_the_password_is_asked_for_and_kept_private(server: PostgresServer, data: Path) -> None:
    wrong = server.url.replace("postgres:", "postgres:not-", 1)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)
    password = server.url.removeprefix("postgresql://postgres:").partition("@")[0]
    assert password not in repr(server)
    assert password not in (data / "server.log").read_text(encoding="utf-8")
    assert stat.S_IMODE((data / "password").stat().st_mode) == 0o600


def test_folders_above_the_data_keep_their_permissions(tmp_path: Path) -> None:
    parent = tmp_path / "private"
    parent.mkdir(mode=0o700)
    above = {folder: folder.stat() for folder in (parent, *parent.parents)}
    with start_postgres(parent / "data", settings=TEST_SETTINGS) as server:
        assert ask(server.url, "SELECT 1") == 1
    assert stat.S_IMODE(parent.stat().st_mode) == 0o700
    for folder, before in above.items():
        after = folder.stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


@pytest.mark.parametrize("ending", ["pass", "import os; os.kill(os.getpid(), 9)"], ids=["exit", "kill -9"])
def test_the_server_ends_with_its_owner(data: Path, ending: str) -> None:
    program = f"""
from pathlib import Path
from scoop_outbox.devservers.postgres import TEST_SETTINGS, start_postgres
server = start_postgres(Path({str(data)!r}), settings=TEST_SETTINGS)
print(server.pid, flush=True)
{ending}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    until_blocking(lambda: not runs(pid))


def test_a_server_whose_owner_died_is_stopped_before_the_next_starts(data: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from scoop_outbox.devservers import postgres
postgres._WATCHDOG = "exit"
server = postgres.start_postgres(Path({str(data)!r}), settings=postgres.TEST_SETTINGS)
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    left = int(done.stdout)
    assert runs(left)
    with start_postgres(data, settings=TEST_SETTINGS) as server:
        assert not runs(left)
        assert ask(server.url, "SELECT 1") == 1


@pytest.mark.parametrize("binaries", INSTALLED, ids=str)
def test_the_binaries_that_are_named_are_used(data: Path, binaries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOOP_PG_BIN", str(binaries))
    told = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True)
    with start_postgres(data, settings=TEST_SETTINGS) as server:
        assert str(ask(server.url, "SHOW server_version")) in told.stdout
        server.kill()
        server.start()
        assert ask(server.url, "SELECT 1") == 1


@pytest.fixture
def no_user_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = tmp_path / "programs" / "unshare"
    refusing.parent.mkdir()
    refusing.write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", str(refusing.parent), prepend=os.pathsep)


@pytest.mark.usefixtures("no_user_namespaces")
def test_root_needs_no_user_namespace_in_a_folder_everybody_can_reach() -> None:
    with (
        tempfile.TemporaryDirectory() as data,
        start_postgres(Path(data), settings=TEST_SETTINGS) as server,
    ):
        write_row(server.url)
        server.kill()
        server.start()
        assert ask(server.url, "SELECT count(*) FROM kept") == 1


@pytest.mark.usefixtures("no_user_namespaces")
def test_root_is_told_when_its_folder_is_out_of_reach(tmp_path: Path) -> None:
    parent = tmp_path / "private"
    parent.mkdir(mode=0o700)
    if os.geteuid() == 0:
        with pytest.raises(PostgresStartError, match="choose a folder"):
            start_postgres(parent / "data", settings=TEST_SETTINGS)
    else:
        start_postgres(parent / "data", settings=TEST_SETTINGS).stop()
    assert stat.S_IMODE(parent.stat().st_mode) == 0o700


def test_named_binaries_that_are_not_there_are_an_error(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOOP_PG_BIN", str(data))
    with pytest.raises(PostgresNotFoundError, match="SCOOP_PG_BIN"):
        start_postgres(data)


def test_the_named_server_is_used_and_left_running(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOOP_OUTBOX_TEST_DATABASE_URL", server.url)
    with postgres_for_tests() as url:
        assert url == server.url
    assert ask(server.url, "SELECT 1") == 1


@pytest.mark.parametrize("url", ["postgresql//user:secret-word@host/db", "postgresql://u:secret-word@127.0.0.1:1/db"])
def test_a_named_server_that_cannot_be_reached_is_an_error_without_the_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOOP_OUTBOX_TEST_DATABASE_URL", url)
    with (
        pytest.raises(PostgresNotFoundError, match="SCOOP_OUTBOX_TEST_DATABASE_URL") as raised,
        postgres_for_tests(),
    ):
        pass
    assert "secret-word" not in str(raised.value)


def test_a_url_before_the_first_start_is_an_error(data: Path) -> None:
    with pytest.raises(RuntimeError, match="call start"):
        _ = PostgresServer(data).url
