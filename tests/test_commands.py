"""The commands as a user runs them: the whole path, one-line errors, and a resume after a kill."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from hosts import Hosts
from safetensors.numpy import load_file, save_file

from jaxtempl import cli, files
from jaxtempl.__main__ import COMMANDS, command
from jaxtempl.config.paths import ASSETS, ROOT
from jaxtempl.data.dataset import Dataset
from jaxtempl.models import factory
from jaxtempl.runs import run
from jaxtempl.training import loop, resume


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("commands") / "made")


def call(name: str, *argv: str) -> int:
    return cli.run(command(name), argv)


def test_adapt_finetune_evaluate_and_suggest_work_in_sequence(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted, classifier = tmp_path / "adapted", tmp_path / "classifier"
    assert (
        call(
            "adapt",
            "--size=nano",
            f"--data={data.folder}",
            "--steps=4",
            "--batch_size=4",
            "--save_every=2",
            f"--out={adapted}",
            *tiny.ONE_DEVICE,
        )
        == 0
    )
    made = run.Run(adapted)
    assert made.checkpoints.steps() == [0, 2, 4]
    assert [line["step"] for line in made.metrics() if "validation_loss" in line] == [0, 2, 4]
    assert made.manifest["start"]["weights"] == "assets/nano"
    assert (
        call(
            "finetune",
            f"--from={adapted}@2",
            f"--data={data.folder}",
            "--batch_size=4",
            "--length=32",
            "--epochs=2",
            f"--out={classifier}",
            *tiny.ONE_DEVICE,
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
            "adapt",
            f"--from={adapted}",
            f"--data={data.folder}",
            "--steps=1",
            "--batch_size=4",
            f"--out={tmp_path}/further",
            *tiny.ONE_DEVICE,
        )
        == 0
    )
    assert run.Run(tmp_path / "further").manifest["start"]["run"] == str(adapted)
    capsys.readouterr()
    assert call("finetune", f"--from={adapted}", "--size=70m", f"--data={data.folder}") == 1
    assert "is a nano; leave --size out" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["adapt", "finetune"])
def test_a_killed_training_resumes_bit_for_bit(
    command: str, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is killed; the rest runs here, which is faster and has the same bits with the same devices."""
    flags = [
        "--size=nano",
        f"--data={data.folder}",
        "--steps=12",
        "--batch_size=4",
        "--save_every=12",
        *tiny.ONE_DEVICE,
    ]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", str(jax.config.jax_default_matmul_precision))
    with Hosts(tmp_path, 1, command, *flags, "--recover_minutes=0", f"--out={killed}", devices=8) as hosts:
        hosts.wait_until(lambda: len(list(killed.glob("checkpoints/[1-9]*/manifest.json"))) >= 2)
        hosts.signal(0, signal.SIGKILL)
    assert not (killed / "checkpoints" / "12" / "manifest.json").exists(), "the kill came too late to test anything"
    assert call(command, *flags, f"--out={killed}") == 0
    assert "resuming from" in capsys.readouterr().out
    assert call(command, *flags, f"--out={whole}") == 0
    shapes = factory.abstract_params(run.Run(whole).architecture, run.Run(whole).outputs)
    a, b = (run.Run(out).params(12) for out in (killed, whole))
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
        (["adapt", "--size=nano", "--data=DATA", "--recipe=paper"], 1, "rows of 2048 tokens"),
        (["adapt", "--sise=nano"], 2, "nearest: --size"),
        (["finetune", "--from=nowhere"], 1, "is not a run"),
        (["finetune", "--size=nano", "--data=DATA", "--labels=100000"], 1, "use fewer"),
        (["finetune", "--size=nano", "--data=DATA", "--length=4096"], 1, "positions"),
        (["adapt", "--size=70m", "--data=DATA", "--weights=random"], 1, "another tokenizer|no rows of this tokenizer"),
        (["adapt", "--size=nano", "--data=DATA", "--weights=no/such/folder"], 1, "hub id"),
        (["adapt", "--size=nano", "--data=DATA", "--out=DATA/cases"], 1, "holds other files"),
        (["adapt", "--config=DATA"], 1, "Is a directory"),
        (["finetune", "--size=nano", "--data=DATA", "--labels=-5"], 2, "0 or more"),
        (["finetune", "--size=nano", "--data=DATA", "--length=0"], 2, "1 or more"),
        (["evaluate", "--run=DATA"], 1, "not a run"),
        (["suggest"], 2, "case"),
        (["nonsense"], 2, "allowed: prepare"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_mistake_prints_one_error_line_and_sets_the_exit_code(
    argv: list[str], code: int, said: str, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    flags = [flag.replace("DATA", str(data.folder)) for flag in argv[1:]]
    assert cli.run(lambda given: command(argv[0])(given), flags) == code
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert re.search(said, stderr)


def test_a_run_does_not_resume_with_other_settings(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--size=nano", f"--data={data.folder}", "--steps=1", "--batch_size=4", *tiny.ONE_DEVICE]
    flags.append(f"--out={tmp_path}/run")
    assert call("adapt", *flags) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path}/run: 1 updates of 4 rows, peak learning rate 0.0015; " in printed
    assert "weight_decay: 0.01" not in printed
    assert call("adapt", *flags, "--verbose") == 0
    printed = capsys.readouterr().out
    assert "weight_decay: 0.01" in printed
    assert "complete at step 1" in printed
    assert call("adapt", *flags, "--learning_rate=1") == 1
    assert "rate was 0.0015, is 1.0" in capsys.readouterr().err
    assert call("adapt", *flags, "--resume=never") == 1
    assert call("adapt", *flags[:-1], f"--out={tmp_path}/new", "--resume=must") == 1


@pytest.mark.parametrize(
    ("was", "now", "differ"),
    [
        ("runs/a", "runs/a/", False),
        ("runs/a", "./runs//a", False),
        ("a/b@last", "a/b/@last", False),
        ("/a:0.5,/b:1", "/a/:0.5,/b//:1", False),
        ("runs/a", "runs/b/", True),
        ("runs/a@1", "runs/a/@2", True),
        ("random", "random2", True),
        (3, 4, True),
    ],
)
def test_a_setting_is_the_same_whatever_the_spelling_of_its_path(was: object, now: object, differ: bool) -> None:
    assert resume._differ(was, now) == differ


def test_a_run_does_not_resume_with_other_data_or_initial_weights(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--size=nano", f"--data={tmp_path}/copy", "--steps=1", "--batch_size=4", f"--out={tmp_path}/run"]
    flags += tiny.ONE_DEVICE
    shutil.copytree(data.folder, tmp_path / "copy")
    assert call("adapt", *flags) == 0
    manifest = tmp_path / "copy" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(data.fingerprint, "0" * 64))
    assert call("adapt", *flags) == 1
    told = capsys.readouterr().err
    assert "was started with other settings (dataset was " in told
    assert "--allow_change=dataset" in told
    weights = files.read_json(tmp_path / "run" / "manifest.json")
    weights["start"]["weights_sha256"] = {"model.safetensors": "0" * 64}
    files.write_json(tmp_path / "run" / "manifest.json", weights)
    assert call("adapt", *flags) == 1
    assert "--allow_change=dataset,start" in capsys.readouterr().err


def test_a_full_device_prints_one_error_line(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")

    monkeypatch.setattr(loop, "run_update", full)
    flags = ["--size=nano", f"--data={data.folder}", "--batch_size=4", "--steps=1", f"--out={tmp_path}/run"]
    assert call("adapt", *flags) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        "error: a device has too little memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.)"
    )


def test_an_allowed_change_is_recorded_in_the_run(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--size=nano", f"--data={data.folder}", "--batch_size=4", f"--out={tmp_path}", "--recover_minutes=0"]
    flags += tiny.ONE_DEVICE
    assert call("adapt", *flags, "--steps=2") == 0
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    config = tmp_path / "config.yaml"
    older = config.read_text().replace("decay_at: 0\n", "")  # a release that did not have the field
    assert config.read_text() != older
    config.write_text(older)
    manifest = files.read_json(tmp_path / "manifest.json")
    manifest["versions"]["optax"] = "0.0.1"
    files.write_json(tmp_path / "manifest.json", manifest)
    capsys.readouterr()
    more = [*flags, "--steps=3", "--save_every=1"]
    assert call("adapt", *more, "--allow_change=steps") == 1
    assert "optax was '0.0.1', is " in capsys.readouterr().err
    assert call("adapt", *more, "--allow_change=step") == 2
    assert "allowed: " in capsys.readouterr().err
    assert call("adapt", *more, "--allow_change=steps,optax") == 0
    assert f"resuming from {tmp_path}@1" in capsys.readouterr().out
    changed = files.read_json(tmp_path / "manifest.json")
    assert changed["changes"][0]["steps"] == {"was": 2, "is": 3}
    assert changed["versions"]["optax"] != "0.0.1"
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    assert call("adapt", *more) == 0


def test_adapt_requires_weights_with_a_language_model_head(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ASSETS / "nano" / "config.json", tmp_path)
    tensors = load_file(ASSETS / "nano" / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "embed_out" not in k}, tmp_path / "model.safetensors")
    flags = ["--size=nano", f"--weights={tmp_path}", f"--data={data.folder}", "--batch_size=4", f"--out={tmp_path}/run"]
    flags += tiny.ONE_DEVICE
    assert call("adapt", *flags, "--steps=1") == 1
    assert "has no language-model head" in capsys.readouterr().err
    assert call("finetune", *flags, "--steps=1", "--length=32") == 0


def test_a_run_folder_may_have_an_at_sign_in_its_name(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "me@corp"
    assert call("adapt", "--size=nano", f"--data={data.folder}", "--steps=1", "--batch_size=4", f"--out={out}") == 0
    assert [run.resolve(f"{out}{step}")[1] for step in ("", "@last", "@best", "@0")] == [1, 1, 1, 0]


def test_only_one_process_at_a_time_trains_a_run(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--size=nano", f"--data={data.folder}", "--steps=1", "--batch_size=4", f"--out={tmp_path}/run"]
    with run.lock(tmp_path / "run"):
        assert call("adapt", *flags) == 1
    assert "another process trains into" in capsys.readouterr().err
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
    assert found.stdout.startswith("usage: bin/convert NAME --flags")


def test_every_folder_of_modules_has_an_init_file() -> None:
    """The wheel omits a folder of modules without `__init__.py`."""
    found = {path.parent for top in ("jaxtempl", "converters") for path in (ROOT / top).rglob("*.py")}
    assert [str(path.relative_to(ROOT)) for path in sorted(found) if not (path / "__init__.py").is_file()] == []
