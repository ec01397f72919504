"""Documents as tests see them: code blocks, the programs among them and what they print, links and headings."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import scoop_outbox

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\n")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Program:
    """A code block that is a file, and the block below it, which is what running it prints."""

    file: str
    code: str
    prints: str | None


_OF_A_RUN = re.compile(r"run: (rolling back|rollback failed) \(service ")


def blocks(document: Path, *languages: str) -> list[tuple[str, str]]:
    """The code blocks in these languages: language and content."""
    found = [(match[1], match[2]) for match in _FENCE.finditer(document.read_text(encoding="utf-8"))]
    return [(language, content) for language, content in found if language in languages]


def programs(document: Path) -> list[Program]:
    """The code blocks that begin with a comment of their file's name."""
    found = []
    around = blocks(document, "python", "text")
    for (language, content), (below, printed) in zip(around, [*around[1:], ("", "")], strict=True):
        name = _FILE.match(content)
        if language == "python" and name is not None:
            found.append(Program(name[1], content, printed if below == "text" else None))
    return found


def run(program: Program, folder: Path, database_url: str, **more: str) -> str:
    """Run a program as a reader does, in a folder of its own, and return what it prints with paths shortened."""
    environment = os.environ | {"SCOOP_OUTBOX_DATABASE": database_url, "PYTHONWARNINGS": "error"} | more
    ended = subprocess.run(
        [sys.executable, program.file],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # A program that has not said where the log goes sees warnings here: of runs that failed, and of nothing else.
    others = [line for line in ended.stderr.splitlines() if not _OF_A_RUN.match(line)]
    assert (ended.returncode, others) == (0, []), ended.stdout + ended.stderr
    package = Path(scoop_outbox.__file__).parents[1]
    return ended.stdout.replace(f"{folder.resolve()}/", "").replace(f"{package}/", "")


def comparable(text: str) -> str:
    """The text without what differs from run to run."""
    return _UUID.sub("<id>", text).strip()


def anchors(document: Path) -> set[str]:
    """What a link can point to within a document: its headings, as they are spelled in addresses."""
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(document: Path) -> list[str]:
    """Where the links of a document point."""
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    return re.findall(r"\]\(([^)\s]+)\)", text)


def commands(document: Path) -> list[list[str]]:
    """What a reader is told to type: the lines of shell blocks, and `make` and `scoop-outbox` between backticks."""
    text = document.read_text(encoding="utf-8")
    lines = [line for _, content in blocks(document, "sh") for line in content.splitlines()]
    lines += re.findall(r"`((?:make|scoop-outbox)(?: [^`]*)?)`", _FENCE.sub("", text))
    return [shlex.split(line, comments=True) for line in lines]
