"""The commands as a user runs them: real processes, one clear line for a mistake, a kill in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from jaxtempl import cli, run
from jaxtempl.__main__ import COMMANDS, command
from jaxtempl.config import ROOT
from jaxtempl.dataset import Dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("commands") / "made")


def call(name: str, *argv: str) -> int:
    return cli.run(command(name), argv)


def process(name: str, *argv: str, **options: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "jaxtempl", name, *argv]
    return subprocess.Popen(line, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


def test_the_whole_path(data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapted, classifier = tmp_path / "adapted", tmp_path / "classifier"
    assert (
        call(
            "adapt",
            "--size=nano",
            f"--data={data.folder}",
            "--steps=4",
            "--batch=4",
            "--save_every=2",
            f"--out={adapted}",
        )
        == 0
    )
    made = run.Run(adapted)
    assert made.checkpoints.steps() == [0, 2, 4]
    assert made.manifest["start"]["weights"] == "assets/nano"
    assert (
        call(
            "finetune",
            f"--from={adapted}@2",
            f"--data={data.folder}",
            "--batch=4",
            "--length=32",
            "--epochs=2",
            f"--out={classifier}",
        )
        == 0
    )
    tuned = run.Run(classifier)
    assert tuned.manifest["start"]["step"] == 2
    assert [t.id for t in tuned.templates] == [t.id for t in data.templates]
    assert call("evaluate", f"--run={classifier}", f"--data={data.folder}") == 0
    report = json.loads((classifier / "evaluate-test" / "report.json").read_text())
    assert report["metrics"]["top1"]["value"] > 0.25
    case = tmp_path / "case.json"
    case.write_text('{"messages": [{"role": "customer", "text": "hi"}]}')
    capsys.readouterr()
    assert call("suggest", f"--run={classifier}@best", str(case), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["suggestions"]) == min(5, len(data.templates))
    assert (
        call(
            "adapt", f"--from={adapted}", f"--data={data.folder}", "--steps=1", "--batch=4", f"--out={tmp_path}/further"
        )
        == 0
    )
    assert run.Run(tmp_path / "further").manifest["start"]["run"] == str(adapted)


def test_a_killed_adapt_goes_on_to_the_same_end(data: Dataset, tmp_path: Path) -> None:
    flags = [
        "--size=nano",
        f"--data={data.folder}",
        "--steps=12",
        "--batch=4",
        "--save_every=12",
        "--recover_minutes=0",
    ]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first = process("adapt", *flags, f"--out={killed}")
    deadline = time.monotonic() + 120
    while len(list(killed.glob("checkpoints/[1-9]*/manifest.json"))) < 2 and time.monotonic() < deadline:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (killed / "checkpoints" / "12" / "manifest.json").exists(), "the kill came too late to test anything"
    outputs = [process("adapt", *flags, f"--out={out}").communicate() for out in (killed, whole)]
    assert "going on from" in outputs[0][0]
    shapes = run.abstract_params(run.Run(whole).architecture, run.Run(whole).outputs)
    a, b = (run.Run(out).params(12) for out in (killed, whole))
    import jax

    assert jax.tree.structure(a) == jax.tree.structure(shapes)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    lines = [
        [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (killed, whole)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["adapt", "--size=410m", "--data=nowhere"], 1, "bin/prepare --transcripts"),
        (["adapt", "--size=nano", "--recipe=paper"], 1, "fp16"),
        (["adapt", "--sise=nano"], 2, "nearest: --size"),
        (["finetune", "--from=nowhere"], 1, "no run"),
        (["finetune", "--size=nano", "--data=DATA", "--labels=100000"], 1, "ask for fewer"),
        (["finetune", "--size=nano", "--data=DATA", "--length=4096"], 1, "positions"),
        (["adapt", "--size=70m", "--data=DATA", "--weights=random"], 1, "another tokenizer|no rows of this tokenizer"),
        (["adapt", "--size=nano", "--data=DATA", "--weights=no/such/folder"], 1, "hub id"),
        (["evaluate", "--run=DATA"], 1, "something else than a run"),
        (["suggest"], 2, "case"),
        (["nonsense"], 2, "allowed: prepare"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_an_exit_code(
    argv: list[str], code: int, said: str, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    flags = [flag.replace("DATA", str(data.folder)) for flag in argv[1:]]
    assert cli.run(lambda given: command(argv[0])(given), flags) == code
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert re.search(said, stderr)


def test_a_run_is_not_gone_on_with_by_other_settings(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--size=nano", f"--data={data.folder}", "--steps=1", "--batch=4", f"--out={tmp_path}/run"]
    assert call("adapt", *flags) == 0
    assert call("adapt", *flags) == 0
    assert "complete at step 1" in capsys.readouterr().out
    assert call("adapt", *flags, "--rate=1") == 1
    assert "rate was 0.0015, is 1.0" in capsys.readouterr().err
    assert call("adapt", *flags, "--resume=never") == 1
    assert call("adapt", *flags[:-1], f"--out={tmp_path}/new", "--resume=must") == 1


def test_a_run_is_trained_by_one_process_at_a_time(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--size=nano", f"--data={data.folder}", "--steps=1", "--batch=4", f"--out={tmp_path}/run"]
    with run.held(tmp_path / "run"):
        assert call("adapt", *flags) == 1
    assert "is being trained by another process" in capsys.readouterr().err
    assert call("adapt", *flags) == 0


@pytest.mark.parametrize("name", [*COMMANDS, "convert"])
def test_every_command_has_a_thin_script(name: str) -> None:
    script = ROOT / "bin" / name
    assert os.access(script, os.X_OK)
    assert len(script.read_text().splitlines()) < 25


def test_a_script_runs_from_any_folder(tmp_path: Path) -> None:
    found = subprocess.run(
        [ROOT / "bin" / "convert", "--help"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert found.stdout.startswith("usage: bin/convert huggingface")
