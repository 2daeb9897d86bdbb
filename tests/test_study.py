"""A scaling study: its file, the order of its jobs, failure, interruption and resume, and its results."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import scaled
import tiny
import yaml

from jaxtempl import files
from jaxtempl.commands import scaling
from jaxtempl.config.paths import CONFIGS, ROOT
from jaxtempl.config.scaling import ScalingRunConfig
from jaxtempl.errors import Interrupted, UsageError, UserError
from jaxtempl.scaling import columns, progress, results, runner, study
from jaxtempl.scaling.jobs import Job, Jobs, format_flags, shard
from jaxtempl.scaling.progress import DurationEstimator
from jaxtempl.scaling.runner import JobRunner
from jaxtempl.scaling.study import Cell
from jaxtempl.specs import flops

SMALL: dict[str, Any] = {
    "name": "small",
    "task": "cases",
    "general": "other",
    "datasets": {
        "cases": {"train": ["train.jsonl"], "test": ["test.jsonl"], "validation": ["validation.jsonl"]},
        "other": {"documents": ["docs.jsonl"]},
    },
    "prepare": {"length": 32},
    "base": {"data": {"other": 1}, "adapt": {"steps": 2}},
    "corpora": {"domain": {"cases": 0.75, "other": 0.25}},
    "adapt": {"steps": 4, "save_every": 2, "batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 3e-3},
    "finetune": {"length": 32, "batch_size": 8, "gradient_accumulation_steps": 1},
    "zero_shot": 3,
    "sizes": ["nano-0.6m"],
    "grids": [
        {"checkpoints": "all", "labels": [8]},
        {"checkpoints": ["last", "random"], "labels": [8, 0], "seeds": [1]},
        {"checkpoints": ["base"], "labels": [8], "variant": "mean", "finetune": {"pooling": "mean"}},
    ],
}
NAMES = [
    "nano-0.6m_base_8-labels_seed-0",
    "nano-0.6m_domain-2_8-labels_seed-0",
    "nano-0.6m_domain-4_8-labels_seed-0",
    "nano-0.6m_domain-4_8-labels_seed-1",
    "nano-0.6m_domain-4_all-labels_seed-1",
    "nano-0.6m_random_8-labels_seed-1",
    "nano-0.6m_random_all-labels_seed-1",
    "nano-0.6m_base_8-labels_seed-0_mean",
]


def read(folder: Path, **changes: Any) -> study.Study:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return study.read(path)


@pytest.mark.parametrize("path", sorted((CONFIGS / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_included_studies_can_be_planned(path: Path, tmp_path: Path) -> None:
    loaded = study.read(path)
    cells = study.cells(loaded)
    todo = Jobs(loaded, tmp_path, tmp_path).resolve(cells)
    assert len({cell.name for cell in cells}) == len(cells)
    outputs = {job.output for job in todo}
    steps = {str(step) for step in [0, *loaded.saved_steps, loaded.anneal]}
    for job in todo:
        for file in job.inputs:
            assert file in outputs or file.parent.name in steps, f"{job.name} needs {file}, which no job creates"
    assert path.stem == loaded.name


def test_a_study_is_named_by_its_path_or_by_its_name(tmp_path: Path) -> None:
    assert study.find("laptop") == CONFIGS / "studies" / "laptop.yaml"
    assert study.find(str(tmp_path / "study.yaml")) == tmp_path / "study.yaml"
    with pytest.raises(UserError, match="nowhere"):
        study.read(study.find("nowhere"))


def test_cells_are_the_union_of_the_grids_without_duplicates(tmp_path: Path) -> None:
    assert [cell.name for cell in study.cells(read(tmp_path))] == NAMES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": 1}, "unknown field `tasks`"),
        ({"sizes": 3}, r"Expected `array`, got `int` - at `\$.sizes`"),
        ({"task": "star"}, "'star' is not one of the study's datasets .cases, other."),
        ({"corpora": {"domain": {"sgd": 1}}}, "'sgd' is not one of the study's datasets"),
        ({"adapt": {"steps": 4, "batch_size": 4}}, "adapt needs save_every: a whole number"),
        ({"grids": [{"checkpoints": [3]}]}, "step 3 is not saved; the saved steps are 2, 4"),
        ({"grids": [{"sizes": ["70m"]}]}, "'70m' is not one of the study's sizes .nano-0.6m."),
        ({"grids": [{"checkpoints": ["first"]}]}, r"Invalid enum value 'first'"),
    ],
)
def test_impossible_studies_are_rejected(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, **changes)


def test_a_study_of_format_1_is_read_with_the_current_names(tmp_path: Path) -> None:
    old = {**SMALL, "exam": SMALL["zero_shot"]}
    del old["zero_shot"]
    old["adapt"] = {"steps": 4, "save_every": 2, "batch": 4, "accumulate": 1, "rate": 3e-3}
    old["finetune"] = {"length": 32, "batch": 8, "accumulate": 1}
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(old))
    assert study.read(path) == read(tmp_path)
    path.write_text(yaml.safe_dump({**SMALL, "format": 3}))
    with pytest.raises(UserError, match="has format 3; this release reads up to 2"):
        study.read(path)


def test_results_of_format_1_are_read_with_the_current_columns(tmp_path: Path) -> None:
    rows = [{**scaled.row("nano-0.6m", 75), "zero_shot_top1": 0.5, "zero_shot_loss": 1.5}]
    results.write(tmp_path, rows)
    table = pq.read_table(tmp_path / results.FILE)
    old = {new: name for name, new in columns.RENAMED.items()}
    renamed = table.rename_columns([old.get(name, name) for name in table.column_names])
    assert "exam_likeliest_top1" in renamed.column_names
    pq.write_table(renamed.replace_schema_metadata(None), tmp_path / results.FILE)
    assert results.read(tmp_path) == rows
    pq.write_table(table.replace_schema_metadata({"format": "3"}), tmp_path / results.FILE)
    with pytest.raises(UserError, match="has format 3; this release reads up to 2"):
        results.read(tmp_path)


def test_flags_are_formatted_for_the_commands() -> None:
    assert format_flags({"a": 1, "b": True}, {"a": 2.5, "c": ["x", "y"]}) == ["--a=2.5", "--b=true", "--c=x,y"]


def test_shards_partition_the_cells(tmp_path: Path) -> None:
    cells = study.cells(read(tmp_path))
    parts = [shard(cells, i, 3) for i in (1, 2, 3)]
    assert sorted(cell.name for part in parts for cell in part) == sorted(NAMES)
    for text in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(UsageError, match="is not I/N"):
            runner.parse_shard(text)


def test_bert_has_its_own_flags_and_rows(tmp_path: Path) -> None:
    bert = {"adapt": {"learning_rate": 1e-4}, "finetune": {"select": "test"}}
    loaded = read(tmp_path, sizes=["nano-0.6m", "bert-tiny"], bert=bert, prepare={"length": 1024})
    jobs = {job.name: job for job in Jobs(loaded, tmp_path / "out", tmp_path).resolve(study.cells(loaded))}
    assert "--learning_rate=0.0001" in jobs["adapted/bert-tiny_domain"].commands[0]
    assert "--learning_rate=0.003" in jobs["adapted/nano-0.6m_domain"].commands[0]
    assert "--select=test" in jobs["cells/bert-tiny_base_8-labels_seed-0"].commands[0]
    assert {"data/cases-nano-1024", "data/cases-bert-uncased-512"} <= set(jobs)
    assert "--zero_shot=0" in jobs["language/bert-tiny_base_0"].commands[-1]


def script(folder: Path, name: str, body: str) -> tuple[str, ...]:
    """Write a script and return it as a command, by its path relative to bin/."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport pathlib, sys, time, os, signal\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return (os.path.relpath(path, ROOT / "bin"),)


def job(folder: Path, name: str, body: str = "", inputs: tuple[Path, ...] = (), operations: float = 1.0) -> Job:
    output = folder / "made" / name
    write = f"p = pathlib.Path({str(output)!r}); p.parent.mkdir(parents=True, exist_ok=True)\n{body}\np.write_text('x')"
    command = script(folder, f"{name.replace('/', '-')}.py", write)
    return Job(name, (command,), inputs, output, operations)


def run_jobs(folder: Path, jobs: list[Job], processes: int = 2) -> list[str]:
    return JobRunner(jobs, folder / "out", processes, lambda: None).run()


def test_a_failed_job_blocks_only_its_dependents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = job(tmp_path, "data/a")
    bad = job(tmp_path, "adapted/b", "print('no room left'); sys.exit(3)", (first.output,))
    after = job(tmp_path, "cells/c", inputs=(bad.output,))
    other = job(tmp_path, "cells/d", inputs=(first.output,))
    (failure, blocked) = run_jobs(tmp_path, [after, bad, other, first])
    assert failure.startswith("adapted/b: no room left (")
    assert blocked == "1 jobs wait for failed ones, such as cells/c"
    assert other.is_done
    assert not after.is_done
    assert "cells: 1 done, 1 waiting" in capsys.readouterr().err


def test_done_jobs_are_skipped_and_cells_start_at_their_checkpoint(tmp_path: Path) -> None:
    early = tmp_path / "made" / "early"
    long = job(tmp_path, "adapted/long", f"pathlib.Path({str(early)!r}).write_text('x'); time.sleep(5)")
    times = "open(__file__ + '.times', 'a').write(str(time.time()) + chr(10))"
    cell = job(tmp_path, "cells/early", times, (early,))
    last = job(tmp_path, "cells/last", times, (long.output,))
    assert run_jobs(tmp_path, [long, last, cell]) == []
    assert run_jobs(tmp_path, [long, last, cell]) == []
    begun = {n: (tmp_path / f"cells-{n}.py.times").read_text().split() for n in ("early", "last")}
    assert [len(found) for found in begun.values()] == [1, 1]
    assert float(begun["early"][0]) < float(begun["last"][0])


def test_each_checkpoint_of_an_annealed_study_has_a_branch(tmp_path: Path) -> None:
    loaded, out = read(tmp_path, anneal=3), tmp_path / "out"
    jobs = {job.name: job for job in Jobs(loaded, out, tmp_path).resolve(study.cells(loaded))}
    trunk, branch = jobs["adapted/nano-0.6m_domain"], jobs["annealed/nano-0.6m_domain_2"]
    assert {"--schedule=wsd", "--decay_at=3", "--steps=4"} <= set(trunk.commands[0])
    expected = {f"--from={out / 'adapted' / 'nano-0.6m_domain'}@2", "--schedule=linear", "--steps=3", "--seed=1"}
    assert expected <= set(branch.commands[0])
    assert branch.output == out / "annealed" / "nano-0.6m_domain_2" / "checkpoints" / "3" / "manifest.json"
    cell = jobs["cells/nano-0.6m_domain-2_8-labels_seed-0"]
    assert f"--from={out / 'annealed' / 'nano-0.6m_domain_2'}@3" in cell.commands[0]
    assert branch.output in cell.inputs
    assert [loaded.tokens("nano-0.6m", step) for step in (0, 2)] == [0, (2 + 3) * 4 * 32]


def test_two_shards_run_a_shared_job_once(tmp_path: Path) -> None:
    counted = "open(__file__ + '.times', 'a').write('x'); time.sleep(1)"
    shared = job(tmp_path, "data/shared", counted)
    cells = [job(tmp_path, f"cells/{i}", inputs=(shared.output,)) for i in range(2)]

    def of(i: int) -> list[str]:
        part = JobRunner([shared, cells[i]], tmp_path / "out", 1, lambda: None)
        part._forwarding_signals = contextlib.nullcontext  # type: ignore[method-assign] - only the main thread handles signals
        return part.run()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(of, range(2))) == [[], []]
    assert (tmp_path / "data-shared.py.times").read_text() == "x"
    assert all(cell.is_done for cell in cells)


def test_sigterm_is_forwarded_and_the_same_command_resumes(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); open(__file__ + '.up', 'w'); time.sleep(60)"
    slow = job(tmp_path, "adapted/slow", f"if not pathlib.Path(__file__ + '.up').exists():\n    {body}")
    after = job(tmp_path, "cells/after", inputs=(slow.output,))

    def kill() -> None:
        while not (tmp_path / "adapted-slow.py.up").exists():
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(Interrupted, match="the same command resumes"):
        run_jobs(tmp_path, [slow, after])
    assert not slow.is_done
    assert run_jobs(tmp_path, [slow, after]) == []
    assert after.is_done


def test_time_left_is_linear_in_operations(tmp_path: Path) -> None:
    durations = DurationEstimator(tmp_path)
    assert progress.format_time_left([job(tmp_path, "cells/a", operations=5.0)], durations, 1) == "time left unknown"
    for work, seconds in ((10.0, 30.0), (20.0, 50.0)):
        durations.add(job(tmp_path, f"cells/{work:g}", operations=work), seconds)
    assert DurationEstimator(tmp_path).estimate(job(tmp_path, "cells/b", operations=100.0)) == pytest.approx(210)
    todo = [job(tmp_path, f"cells/{i}", operations=100.0) for i in range(4)]
    assert progress.format_time_left(todo, durations, 2) == "about 7 minutes left"
    assert progress.format_time_left([*todo, job(tmp_path, "base/x")], durations, 2).endswith(
        "plus jobs of unknown duration"
    )


def test_each_process_has_its_own_cores() -> None:
    cores = runner._available_cores()
    core_sets = runner._core_sets(len(cores))
    assert set.union(*core_sets) == cores
    assert sum(map(len, core_sets)) == len(cores)
    assert runner._core_sets(2 * len(cores))[-1] == cores


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[study.Study, Path]:
    """Run a study of real commands on a tiny dataset."""
    folder = tmp_path_factory.mktemp("study")
    tiny.dataset(folder / "data")
    lines = [
        f'{{"id": "d{i}", "text": "An article, number {i}, about cards and refunds. And more."}}\n' for i in range(200)
    ]
    (folder / "data" / "docs.jsonl").write_text("".join(lines))
    loaded = read(folder)
    flags = {"study": str(folder / "study.yaml"), "data": str(folder / "data"), "out": str(folder / "out")}
    runner.run(ScalingRunConfig(**flags, shard="1/2", processes=1))
    assert len(results.read(folder / "out")) == 4
    runner.run(ScalingRunConfig(**flags, processes=2))
    return loaded, folder / "out"


@pytest.mark.slow
def test_a_study_of_real_commands_writes_a_row_for_each_cell(finished: tuple[study.Study, Path]) -> None:
    _, out = finished
    rows = {row["cell"]: row for row in results.read(out)}
    assert list(rows) == NAMES
    last, base, random = (rows[NAMES[i]] for i in (2, 0, 5))
    a = study.architecture_of("nano-0.6m")
    assert (last["tokens"], last["adapt_step"], last["finished"]) == (4 * 4 * 32, 4, True)
    assert last["flops_exact"] == flops.per_token(a, 32) * last["tokens"]
    assert last["flops_body"] == 6 * flops.parameter_count(a, embeddings=False) * last["tokens"]
    assert (last["domain_weight"], base["domain_weight"]) == (0.75, None)
    assert 0 < last["alignment"] <= 1
    assert base["base_tokens"] == 2 * 4 * 32
    assert last["domain_loss"] < base["domain_loss"]
    assert (random["domain_loss"], random["tokens"], random["labels"]) == (None, 0, 8)
    assert rows[NAMES[4]]["labels"] == 60
    for row in rows.values():
        assert row["top1_low"] <= row["top1"] <= row["top3"] <= row["top5"] <= row["top5_high"]
        assert row["contexts"] == 18
    report = files.read_json(out / "cells" / NAMES[2] / "report" / "report.json")
    assert last["loss"] == report["metrics"]["cross_entropy"]["value"]
    assert not (out / "cells" / NAMES[2] / "run" / "checkpoints").exists()
    about = pq.read_schema(out / results.FILE).field("alignment").metadata[b"about"]
    assert about == columns.COLUMNS["alignment"][1].encode()


def test_a_plan_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(tmp_path)
    runner.run(ScalingRunConfig(study=str(tmp_path / "study.yaml"), out=str(tmp_path / "out"), plan=True))
    printed = capsys.readouterr().out
    assert "8 cells, " in printed
    assert f"bin/finetune --from={tmp_path}/out/adapted/nano-0.6m_domain@2 " in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": ("70m",)}, "--sizes=70m is not in the study"),
        ({"shard": "5/2"}, "is not I/N"),
        ({}, "pass --data=DIR"),
    ],
)
def test_wrong_flags_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("JAXTEMPL_DATA", raising=False)
    read(tmp_path)
    with pytest.raises(UsageError, match=message):
        runner.run(ScalingRunConfig(study=str(tmp_path / "study.yaml"), out=str(tmp_path / "out"), **changes))


def test_missing_results_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bin/scaling run --study"):
        results.read(tmp_path)


def test_alignment_is_the_share_of_the_tasks_ngrams(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "made").folder
    for out in ("a.json", "b.json"):
        arguments = ["align", f"--data={data}", f"--task={data}", "--size=nano", f"--out={tmp_path}/{out}"]
        subprocess.run([ROOT / "bin" / "scaling", *arguments], check=True, capture_output=True)
    one, other = (files.read_json(tmp_path / out) for out in ("a.json", "b.json"))
    assert one == other
    assert 0.5 < one["alignment"] < 1  # no training case contains the numbers of the test cases


def test_a_cell_is_named_by_its_settings() -> None:
    assert Cell("70m", "adapted", "domain", 5, 0, 2, "tags", {}).name == "70m_domain-5_all-labels_seed-2_tags"


def test_the_help_lists_all_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(["--help"])
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:]] == list(scaling.COMMANDS)
    with pytest.raises(UsageError, match="bin/scaling walk: name one of run, report"):
        scaling.main(["walk"])
