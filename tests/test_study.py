"""A study: its file read, its jobs in order, run as processes that fail, are killed and go on, and its results."""

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
import tiny
import yaml

from jaxtempl import files
from jaxtempl.commands import scaling
from jaxtempl.config.paths import CONFIGS, ROOT
from jaxtempl.config.scaling import ScalingRunConfig
from jaxtempl.errors import Interrupted, UsageError, UserError
from jaxtempl.scaling import progress, results, runner, study
from jaxtempl.scaling.jobs import Job, Jobs, flags, shard
from jaxtempl.scaling.progress import Clock
from jaxtempl.scaling.runner import Runner
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
    "exam": 3,
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
def test_the_studies_that_come_with_it_can_be_planned(path: Path, tmp_path: Path) -> None:
    made = study.read(path)
    cells = study.cells(made)
    todo = Jobs(made, tmp_path, tmp_path).of(cells)
    assert len({cell.name for cell in cells}) == len(cells)
    makes = {job.makes for job in todo}
    steps = {str(step) for step in [0, *made.saved]}
    for job in todo:
        for need in job.needs:
            assert need in makes or need.parent.name in steps, f"{job.name} waits for {need}, which nothing makes"
    assert path.stem == made.name


def test_a_study_is_named_by_its_path_or_as_one_of_the_projects(tmp_path: Path) -> None:
    assert study.path("laptop") == CONFIGS / "studies" / "laptop.yaml"
    assert study.path(str(tmp_path / "study.yaml")) == tmp_path / "study.yaml"
    with pytest.raises(UserError, match="nowhere"):
        study.read(study.path("nowhere"))


def test_cells_are_the_grids_each_once(tmp_path: Path) -> None:
    assert [cell.name for cell in study.cells(read(tmp_path))] == NAMES


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": 1}, "unknown field `tasks`"),
        ({"sizes": 3}, r"Expected `array`, got `int` - at `\$.sizes`"),
        ({"task": "star"}, "'star' is none of the study's datasets .cases, other."),
        ({"corpora": {"domain": {"sgd": 1}}}, "'sgd' is none of the study's datasets"),
        ({"adapt": {"steps": 4, "batch_size": 4}}, "adapt needs save_every: a whole number"),
        ({"grids": [{"checkpoints": [3]}]}, "step 3 is not saved; these are: 2, 4"),
        ({"grids": [{"sizes": ["70m"]}]}, "'70m' is none of the study's sizes .nano-0.6m."),
        ({"grids": [{"checkpoints": ["first"]}]}, r"Invalid enum value 'first'"),
    ],
)
def test_what_no_study_can_do_is_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(tmp_path, **changes)


def test_flags_are_as_the_commands_take_them() -> None:
    assert flags({"a": 1, "b": True}, {"a": 2.5, "c": ["x", "y"]}) == ["--a=2.5", "--b=true", "--c=x,y"]


def test_shards_are_all_cells_each_once(tmp_path: Path) -> None:
    cells = study.cells(read(tmp_path))
    parts = [shard(cells, i, 3) for i in (1, 2, 3)]
    assert sorted(cell.name for part in parts for cell in part) == sorted(NAMES)
    for text in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(UsageError, match="is not I/N"):
            runner._shard(text)


def test_berts_have_flags_and_rows_of_their_own(tmp_path: Path) -> None:
    bert = {"adapt": {"rate": 1e-4}, "finetune": {"select": "test"}}
    made = read(tmp_path, sizes=["nano-0.6m", "bert-tiny"], bert=bert, prepare={"length": 1024})
    jobs = {job.name: job for job in Jobs(made, tmp_path / "out", tmp_path).of(study.cells(made))}
    assert "--learning_rate=0.0001" in jobs["adapted/bert-tiny_domain"].commands[0]
    assert "--learning_rate=0.003" in jobs["adapted/nano-0.6m_domain"].commands[0]
    assert "--select=test" in jobs["cells/bert-tiny_base_8-labels_seed-0"].commands[0]
    assert {"data/cases-nano-1024", "data/cases-bert-uncased-512"} <= set(jobs)
    assert "--zero_shot=0" in jobs["language/bert-tiny_base_0"].commands[-1]


def script(folder: Path, name: str, body: str) -> tuple[str, ...]:
    """A command in the place of one of bin/'s, by a path that leads out of it."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport pathlib, sys, time, os, signal\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return (os.path.relpath(path, ROOT / "bin"),)


def job(folder: Path, name: str, body: str = "", needs: tuple[Path, ...] = (), work: float = 1.0) -> Job:
    makes = folder / "made" / name
    write = f"p = pathlib.Path({str(makes)!r}); p.parent.mkdir(parents=True, exist_ok=True)\n{body}\np.write_text('x')"
    command = script(folder, f"{name.replace('/', '-')}.py", write)
    return Job(name, (command,), needs, makes, work)


def ran(folder: Path, jobs: list[Job], processes: int = 2) -> list[str]:
    return Runner(jobs, folder / "out", processes, lambda: None).run()


def test_what_fails_holds_up_only_what_needs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = job(tmp_path, "data/a")
    bad = job(tmp_path, "adapted/b", "print('no room left'); sys.exit(3)", (first.makes,))
    after = job(tmp_path, "cells/c", needs=(bad.makes,))
    other = job(tmp_path, "cells/d", needs=(first.makes,))
    (why, stuck) = ran(tmp_path, [after, bad, other, first])
    assert why.startswith("adapted/b: no room left (")
    assert stuck == "1 wait for what failed, cells/c among them"
    assert other.done
    assert not after.done
    assert "cells: 1 done, 1 waiting" in capsys.readouterr().err


def test_what_is_done_is_not_done_again_and_a_first_checkpoint_is_enough_to_begin(tmp_path: Path) -> None:
    early = tmp_path / "made" / "early"
    long = job(tmp_path, "adapted/long", f"pathlib.Path({str(early)!r}).write_text('x'); time.sleep(5)")
    times = "open(__file__ + '.times', 'a').write(str(time.time()) + chr(10))"
    cell = job(tmp_path, "cells/early", times, (early,))
    last = job(tmp_path, "cells/last", times, (long.makes,))
    assert ran(tmp_path, [long, last, cell]) == []
    assert ran(tmp_path, [long, last, cell]) == []
    begun = {n: (tmp_path / f"cells-{n}.py.times").read_text().split() for n in ("early", "last")}
    assert [len(found) for found in begun.values()] == [1, 1]
    assert float(begun["early"][0]) < float(begun["last"][0])


def test_two_shards_do_a_shared_job_once(tmp_path: Path) -> None:
    counted = "open(__file__ + '.times', 'a').write('x'); time.sleep(1)"
    shared = job(tmp_path, "data/shared", counted)
    cells = [job(tmp_path, f"cells/{i}", needs=(shared.makes,)) for i in range(2)]

    def of(i: int) -> list[str]:
        part = Runner([shared, cells[i]], tmp_path / "out", 1, lambda: None)
        part._listening = contextlib.nullcontext  # type: ignore[method-assign] - threads hear no signals
        return part.run()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(of, range(2))) == [[], []]
    assert (tmp_path / "data-shared.py.times").read_text() == "x"
    assert all(cell.done for cell in cells)


def test_sigterm_is_passed_on_and_the_same_command_goes_on(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); open(__file__ + '.up', 'w'); time.sleep(60)"
    slow = job(tmp_path, "adapted/slow", f"if not pathlib.Path(__file__ + '.up').exists():\n    {body}")
    after = job(tmp_path, "cells/after", needs=(slow.makes,))

    def kill() -> None:
        while not (tmp_path / "adapted-slow.py.up").exists():
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(Interrupted, match="the same command goes on"):
        ran(tmp_path, [slow, after])
    assert not slow.done
    assert ran(tmp_path, [slow, after]) == []
    assert after.done


def test_time_left_is_by_the_line_through_what_is_done(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    assert progress.left([job(tmp_path, "cells/a", work=5.0)], clock, 1) == "time left not known yet"
    for work, seconds in ((10.0, 30.0), (20.0, 50.0)):
        clock.add(job(tmp_path, f"cells/{work:g}", work=work), seconds)
    assert Clock(tmp_path).seconds(job(tmp_path, "cells/b", work=100.0)) == pytest.approx(210)
    todo = [job(tmp_path, f"cells/{i}", work=100.0) for i in range(4)]
    assert progress.left(todo, clock, 2) == "about 7 minutes left"
    assert progress.left([*todo, job(tmp_path, "base/x")], clock, 2).endswith("and what is not known yet")


def test_each_process_has_cores_of_its_own() -> None:
    cores = runner._cores()
    seats = runner._seats(len(cores))
    assert set.union(*seats) == cores
    assert sum(map(len, seats)) == len(cores)
    assert runner._seats(2 * len(cores))[-1] == cores


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[study.Study, Path]:
    """A study of real commands, on a tiny dataset."""
    folder = tmp_path_factory.mktemp("study")
    tiny.dataset(folder / "data")
    lines = [
        f'{{"id": "d{i}", "text": "An article, number {i}, about cards and refunds. And more."}}\n' for i in range(200)
    ]
    (folder / "data" / "docs.jsonl").write_text("".join(lines))
    made = read(folder)
    asked = {"study": str(folder / "study.yaml"), "data": str(folder / "data"), "out": str(folder / "out")}
    runner.run(ScalingRunConfig(**asked, shard="1/2", processes=1))
    assert len(results.read(folder / "out")) == 4
    runner.run(ScalingRunConfig(**asked, processes=2))
    return made, folder / "out"


@pytest.mark.slow
def test_a_study_of_real_commands_leaves_a_row_a_cell(finished: tuple[study.Study, Path]) -> None:
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
    assert about == results.COLUMNS["alignment"][1].encode()


def test_a_plan_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(tmp_path)
    runner.run(ScalingRunConfig(study=str(tmp_path / "study.yaml"), out=str(tmp_path / "out"), plan=True))
    told = capsys.readouterr().out
    assert "8 cells, " in told
    assert f"bin/finetune --from={tmp_path}/out/adapted/nano-0.6m_domain@2 " in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sizes": ("70m",)}, "--sizes=70m is none of the study's"),
        ({"shard": "5/2"}, "is not I/N"),
        ({}, "pass --data=DIR"),
    ],
)
def test_wrong_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], said: str) -> None:
    monkeypatch.delenv("JAXTEMPL_DATA", raising=False)
    read(tmp_path)
    with pytest.raises(UsageError, match=said):
        runner.run(ScalingRunConfig(study=str(tmp_path / "study.yaml"), out=str(tmp_path / "out"), **asked))


def test_results_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bin/scaling run --study"):
        results.read(tmp_path)


def test_alignment_is_the_share_of_the_tasks_n_grams(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "made").folder
    for out in ("a.json", "b.json"):
        asked = ["align", f"--data={data}", f"--task={data}", "--size=nano", f"--out={tmp_path}/{out}"]
        subprocess.run([ROOT / "bin" / "scaling", *asked], check=True, capture_output=True)
    one, other = (files.read_json(tmp_path / out) for out in ("a.json", "b.json"))
    assert one == other
    assert 0.5 < one["alignment"] < 1  # the numbers of test cases are in no training case


def test_a_cell_says_what_it_is() -> None:
    assert Cell("70m", "adapted", "domain", 5, 0, 2, "tags", {}).name == "70m_domain-5_all-labels_seed-2_tags"


def test_its_help_tells_all_that_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(["--help"])
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()[1:]] == list(scaling.COMMANDS)
    with pytest.raises(UsageError, match="bin/scaling walk: name one of run, report"):
        scaling.main(["walk"])
