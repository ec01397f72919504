"""How the file of a frame is named: never by the folders of the machine that it lies on."""

import os
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest

from scoop_outbox._failure.places import file_of
from scoop_outbox.failure import Failure

BUILD = "/home/ci/build-4711"


@pytest.mark.parametrize(
    "file, module, shown",
    [
        (f"{BUILD}/shop/orders.py", "shop.orders", "shop/orders.py"),
        (f"{BUILD}/.venv/lib/python3.11/site-packages/shop/orders.py", "shop.orders", "shop/orders.py"),
        (f"{BUILD}/shop/__init__.py", "shop", "shop/__init__.py"),
        (f"{BUILD}/shop/orders/__init__.py", "shop.orders", "shop/orders/__init__.py"),
        (f"{BUILD}/acme/shop/orders.py", "acme.shop.orders", "acme/shop/orders.py"),
        (f"{BUILD}/shop.pyz/shop/orders.py", "shop.orders", "shop/orders.py"),
        (f"{BUILD}/shop.pyz/__main__.py", "__main__", "__main__.py"),
        (f"{BUILD}/src/shop.py", "shop", "shop.py"),
        (f"{BUILD}/plugins/orders.py", "plugin_17", "orders.py"),
        (f"{BUILD}/orders.py", "__main__", "orders.py"),
        (f"{BUILD}/orders.py", "", "orders.py"),
        ("src/shop/orders.py", "shop.orders", "shop/orders.py"),
        ("./orders.py", "__main__", "orders.py"),
        ("<string>", "shop", "<string>"),
        ("<frozen importlib._bootstrap>", "importlib._bootstrap", "<frozen importlib._bootstrap>"),
        ("", "shop", ""),
        (os.__file__, "os", "os.py"),
    ],
)
def test_a_file_is_called_as_its_module(file: str, module: str, shown: str) -> None:
    assert file_of(file, {"__name__": module}) == shown


def test_what_is_no_module_is_named_relative_to_the_working_directory_or_the_search_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working, other = tmp_path / "working", tmp_path / "other"
    working.mkdir()
    monkeypatch.chdir(working)
    monkeypatch.setattr(sys, "path", [str(other), "", "relative"])
    assert file_of(str(working / "tools" / "load.py"), {"__name__": "__main__"}) == "tools/load.py"
    assert file_of(str(other / "deep" / "load.py"), {"__name__": "generated"}) == "deep/load.py"
    assert file_of(str(tmp_path / "elsewhere" / "load.py"), {"__name__": "generated"}) == "load.py"
    assert file_of(str(working / "tools" / "load.py"), {}) == "tools/load.py"


def test_the_root_is_no_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert file_of(f"{BUILD}/load.py", {"__name__": "another_name"}) == "load.py"


PROGRAM = """
from scoop_outbox.failure import Failure, Frame
def fail():
    raise ValueError("no")
def main():
    try:
        fail()
    except ValueError as error:
        print(Failure.of(error, source="s").dumps())
"""


def programs(folder: Path) -> dict[str, list[str]]:
    """Return ways to run a program, by the name of its file."""
    package = folder / "src" / "acme" / "shop"  # `acme` is a namespace
    package.mkdir(parents=True)
    package.joinpath("__init__.py").touch()
    package.joinpath("orders.py").write_text(PROGRAM)
    package.joinpath("__main__.py").write_text(PROGRAM + "main()\n")
    folder.joinpath("script.py").write_text(PROGRAM + "main()\n")
    zipapp.create_archive(folder / "src", folder / "shop.pyz", main="acme.shop.orders:main")
    return {
        "script.py": [str(folder / "script.py")],
        "acme/shop/__main__.py": ["-m", "acme.shop"],
        "acme/shop/orders.py": [str(folder / "shop.pyz")],
    }


def test_programs_name_no_folder_of_the_machine_and_their_lines_are_found(tmp_path: Path) -> None:
    path = os.pathsep.join([str(tmp_path / "src"), os.environ.get("PYTHONPATH", "")])
    for name, command in programs(tmp_path).items():
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert str(tmp_path) not in done.stdout
        assert {frame.file_name for frame in Failure.loads(done.stdout).stack_trace} == {name}


def test_the_source_of_a_module_is_shown_wherever_it_lies_on_the_search_path(tmp_path: Path) -> None:
    programs(tmp_path)
    path = os.pathsep.join([str(tmp_path / "src"), os.environ.get("PYTHONPATH", "")])
    script = (
        "import traceback; from acme.shop import orders; from scoop_outbox.failure import Failure\n"
        "try: orders.fail()\n"
        "except ValueError as error: failure = Failure.of(error, source='s')\n"
        "print(''.join(traceback.format_exception(failure.to_exception())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert '  File "acme/shop/orders.py", line 4, in fail\n    raise ValueError("no")\n' in done.stdout
