"""A child process has connections, locks and an identity of its own, and leaves its parent's alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.forking import WHAT

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("what", WHAT)
def test_bug_10_c15_a_program_that_forks(database_url: str, what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.forking", what, database_url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout == "OK\n", done.stderr
