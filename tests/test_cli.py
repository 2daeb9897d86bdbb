"""Every failure of a command is one line; the traceback of a fault is in a file that the line names."""

import errno
import io
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from jaxtempl import cli
from jaxtempl.config.paths import ROOT
from jaxtempl.errors import Interrupted, UsageError, UserError

SCRIPTS = sorted({path.name for path in (ROOT / "bin").iterdir()} - {"environment.sh", "setup", "test"})


def fail(error: BaseException) -> int:
    """Run a command that raises the error."""

    def main(_: Sequence[str]) -> None:
        raise error

    return cli.run(main, [])


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of tracebacks, empty; the current folder is empty too."""
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "jaxtempl"


def test_the_line_of_a_fault_names_the_file_of_its_traceback(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert fail(KeyError("first\nsecond")) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == second
    assert first.startswith("error: a fault of the program (KeyError: 'first\\nsecond')")
    (written,) = state.iterdir()  # a fault that repeats is written once
    assert str(written) in first
    assert re.fullmatch(r"traceback-[0-9a-f]{8}\.txt", written.name)
    assert "in main\n    raise error\nKeyError" in written.read_text()
    assert state.stat().st_mode & 0o077 == 0
    assert fail(ValueError("another")) == 1
    assert len(list(state.iterdir())) == 2
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("home", [".", "/dev/null"])
def test_without_a_home_the_traceback_is_on_standard_error(
    home: str, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # the specification ignores it
    monkeypatch.setenv("HOME", home)
    assert fail(KeyError("x")) == 1
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "KeyError: 'x'"
    assert last.startswith("error: a fault of the program (KeyError: 'x'); the traceback is above")
    assert list(Path().iterdir()) == []


def test_on_a_full_disk_the_traceback_is_on_standard_error(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_half(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text.encode()[:9])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", write_half)
    assert fail(KeyError("x")) == 1
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines[-1] == "KeyError: 'x'"
    assert "No space left on device" in last
    assert list(state.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (UserError("what to do"), 1, "error: what to do\n"),
        (UsageError("which flag"), 2, "error: which flag\n"),
        (Interrupted("saved"), 75, "saved\n"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again, which resumes a training\n"),
        (BrokenPipeError(), 141, ""),
        (PermissionError(errno.EACCES, "Permission denied", "some/file"), 1, "error: some/file: Permission denied\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_expected_end_has_its_exit_code_and_no_traceback(
    error: BaseException, code: int, printed: str, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(error) == code
    assert capsys.readouterr().err == printed
    assert not state.exists()


@pytest.mark.parametrize("raised", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda': none\nmore")])
def test_a_platform_without_a_device_is_named(
    raised: Exception, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def devices() -> None:
        raise raised

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(devices=devices))
    assert fail(raised) == 1
    printed = capsys.readouterr().err
    assert re.fullmatch(r"error: JAX finds no device for JAX_PLATFORMS=cuda[^\n]*; unset it, [^\n]*\n", printed)
    assert ("Unable to initialize" in printed) == bool(str(raised))
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(devices=list))
    assert fail(raised) == 1
    assert "a fault of the program" in capsys.readouterr().err


def test_jax_reports_a_missing_platform_by_an_error_that_is_recognized() -> None:
    code = "import sys, jax; from jaxtempl import cli; sys.exit(cli.run(lambda _: jax.devices(), []))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "nonsense"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: JAX finds no device for JAX_PLATFORMS=nonsense (Unable to initialize")
    assert done.stderr.count("\n") == 1


def test_a_character_that_the_locale_lacks_is_printed_as_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert cli.run(lambda _: print("5 €, \ud83d"), []) == 0
    assert written.getvalue() == b"5 \\u20ac, \\ud83d\n"


@pytest.mark.parametrize("argv", [["--help"], ["prepare", "--help"]])
@pytest.mark.parametrize(
    ("target", "code", "printed"),
    [("> /dev/full", 1, "error: the system: No space left on device\n"), ("| :", 141, ""), (">&-", 0, "")],
)
def test_standard_output_that_cannot_be_written(argv: list[str], target: str, code: int, printed: str) -> None:
    """The second one is argparse's help."""
    program = "from jaxtempl import cli\nfrom jaxtempl.config import data, parsing\nfrom jaxtempl.__main__ import *\n"
    program += "main = (lambda argv: parsing.parse(data.PrepareConfig, argv[1:])) if sys.argv[2:] else run\n"
    program += "import time; time.sleep(.2); sys.exit(cli.run(main, sys.argv[1:]))"
    line = f'{{ "$0" -c "$@"; echo $? >&3; }} {target}'
    for unbuffered in ("", "1"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(
            ["sh", "-c", f"exec 3>&1; {line}", sys.executable, program, *argv],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (f"{code}\n", printed)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout whose Python has no installed packages, with a `bin/setup` that installs nothing."""
    folder = tmp_path_factory.mktemp("fresh")
    shutil.copytree(ROOT / "bin", folder / "bin")
    for name in ("jaxtempl", "converters", "configs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin" / "setup").write_text("#!/bin/sh\n")
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_its_packages_names_bin_setup(name: str, fresh: Path) -> None:
    words = ["run"] if name == "scaling" else ["onnx"] if name == "convert" else []
    done = subprocess.run([fresh / "bin" / name, *words, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert re.fullmatch(r"error: the package \w+ is not installed in \S+; run bin/setup [^\n]*\n", done.stderr)


def test_a_script_without_a_usable_python_names_bin_setup(fresh: Path, tmp_path: Path) -> None:
    shutil.copytree(fresh / "bin", tmp_path / "bin")
    (tmp_path / "python3").write_text("#!/bin/sh\necho unknown option -P >&2; exit 2\n")  # as before 3.11
    (tmp_path / "python3").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [tmp_path / "bin" / "prepare", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"error: nothing is installed in [^\n]*; run bin/setup\n", done.stderr)
