"""Tests of several real processes that train as one: same numbers, one checkpoint, one common exit."""

import contextlib
import functools
import importlib.util
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from hosts import NO_ROOM, Hosts, run_script

from bench.kill import read_losses
from jaxtempl import cli, files
from jaxtempl.commands import adapt as adapt_command
from jaxtempl.commands import finetune as finetune_command
from jaxtempl.config.sizes import tokenizer_path
from jaxtempl.config.training import AdaptConfig
from jaxtempl.data import loader
from jaxtempl.data.dataset import Dataset
from jaxtempl.data.examples import LabelledContexts
from jaxtempl.data.loader import ProcessShare
from jaxtempl.errors import UsageError, UserError
from jaxtempl.parallel import process_group, rules
from jaxtempl.parallel.mesh import MeshShape, make_mesh
from jaxtempl.runs.run import Run
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.text.window import Window
from jaxtempl.training import trainer

STEPS = 9


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("hosts") / "made")


def adapt_flags(data: Dataset, out: Path, *flags: str) -> tuple[str, ...]:
    """Return the flags of a training on any number of processes, with recovery checkpoints as often as possible."""
    common = ["--size=nano", f"--data={data.folder}", "--batch_size=16", f"--steps={STEPS}", "--save_every=99"]
    return "adapt", *common, "--recover_minutes=0", "--precision=fp32", f"--out={out}", *flags


def run_here(command: str, *flags: str) -> None:
    """Run a training in this process, which is faster than starting a new one."""
    main = {"adapt": adapt_command.main, "finetune": finetune_command.main}[command]
    assert cli.run(main, flags) == 0


@pytest.fixture(scope="module")
def uninterrupted(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process on two devices that was never interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_here(*adapt_flags(data, folder, "--mesh.data=1", "--mesh.fsdp=2"))
    return folder


def assert_same(one: Path, other: Path) -> None:
    """Compare the losses of each step and the final parameters, to the rounding of float32."""
    losses = [read_losses(folder) for folder in (one, other)]
    assert list(losses[0]) == list(losses[1])
    np.testing.assert_allclose(list(losses[0].values()), list(losses[1].values()), rtol=2e-5)
    last = [Run(folder).params(Run(folder).checkpoints.steps()[-1]) for folder in (one, other)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-4), *last)


def test_a_run_resumed_on_two_four_and_one_process_equals_an_uninterrupted_run(
    data: Dataset, uninterrupted: Path, tmp_path: Path
) -> None:
    """SIGTERM to one process stops all processes at one step; any number of processes resumes from there."""
    out, done = tmp_path / "run", 0
    for count, mesh in ((2, "--mesh.fsdp=2"), (4, "--mesh.tensor=2")):
        with Hosts(tmp_path, count, *adapt_flags(data, out, mesh)) as hosts:
            hosts.wait_until(lambda: len(read_losses(out)) > done)  # noqa: B023
            hosts.signal(count - 1, signal.SIGTERM)
            assert hosts.codes() == [75] * count, hosts.stderr(0)
            assert f"stopped after step {max(read_losses(out))}" in hosts.stderr(0)
            done = max(read_losses(out))
            assert Run(out).checkpoints.newest_resumable() == done < STEPS
            writers = {name.split("/")[1] for name in manifest(out, done)["files"] if "ocdbt.process" in name}
            assert writers == {f"ocdbt.process_{index}" for index in range(count)}
    run_here(*adapt_flags(data, out, "--mesh.data=2", "--mesh.fsdp=1"))
    assert_same(uninterrupted, out)


def manifest(out: Path, step: int) -> dict[str, Any]:
    return files.read_json(out / "checkpoints" / str(step) / "manifest.json")


def test_two_processes_finetune_to_the_parameters_of_one(data: Dataset, tmp_path: Path) -> None:
    flags = ("finetune", "--size=nano", "--length=32", f"--data={data.folder}", "--batch_size=12", "--steps=4")
    flags += ("--learning_rate=1e-3",)
    run_here(*flags, f"--out={tmp_path / 'one'}", "--mesh.data=1", "--mesh.fsdp=2")
    with Hosts(tmp_path, 2, *flags, f"--out={tmp_path / 'two'}", devices=1) as hosts:
        assert hosts.codes() == [0, 0], hosts.stderr(0)
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_processes_exit_when_one_is_killed_and_the_run_resumes(
    data: Dataset, uninterrupted: Path, tmp_path: Path, victim: int
) -> None:
    out = tmp_path / "run"
    with Hosts(tmp_path, 2, *adapt_flags(data, out, "--heartbeat_seconds=5")) as hosts:
        hosts.wait_until(lambda: len(read_losses(out)) > 1)
        hosts.signal(victim, signal.SIGKILL)
        codes = hosts.codes()
    assert codes[1 - victim] == 1, hosts.stderr(1 - victim)
    assert f"error: process {victim} on " in hosts.stderr(1 - victim).splitlines()[-1]
    run_here(*adapt_flags(data, out, "--mesh.data=1", "--mesh.fsdp=2"))
    assert_same(uninterrupted, out)


def test_processes_with_different_flags_are_refused(data: Dataset, tmp_path: Path) -> None:
    flags = adapt_flags(data, tmp_path / "run")
    with Hosts(tmp_path, 2, *flags, extra_flags={1: "--learning_rate=1e-4"}) as hosts:
        assert hosts.codes() == [1, 1]
    for index in (0, 1):
        (message,) = errors(hosts, index)
        assert "disagree about the settings: learning_rate is 0.0015 in process 0 and 0.0001 in process 1" in message
        assert "; start all" in message
    assert not (tmp_path / "run").exists()


def test_a_failure_of_one_process_ends_all_processes_with_its_reason(data: Dataset, tmp_path: Path) -> None:
    with Hosts(tmp_path, 2, *adapt_flags(data, tmp_path / "run"), prefix={1: NO_ROOM}) as hosts:
        assert hosts.codes() == [1, 1]
    messages = [errors(hosts, index) for index in (0, 1)]
    assert [len(each) for each in messages] == [1, 1]
    assert "error: process 1 on " in messages[0][0]
    assert "failed: checkpoint " in messages[0][0]
    assert all("could not be saved" in each[0] and "File too large" in each[0] for each in messages)


def errors(hosts: Hosts, index: int) -> list[str]:
    return [line for line in hosts.stderr(index).splitlines() if line.startswith("error: ")]


class CountingRows(list[Any]):
    """Rows that count how often they are read."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        return super().__getitem__(index)


def test_each_process_reads_only_its_rows() -> None:
    rows = [{"tokens": np.full(8, i, np.uint16), "segments": np.ones(8, np.uint16)} for i in range(24)]
    whole = loader.row_batches([(rows, None)], 8, 2, seed=3)
    shares = [np.array([0, 1]), np.array([2, 3])]
    sources = [CountingRows(rows) for _ in shares]
    parts = [
        loader.row_batches([(source, None)], 8, 2, 3, local_rows=lambda _, share=share: share)
        for source, share in zip(sources, shares, strict=True)
    ]
    for step in (0, 4):
        for microbatch in range(2):
            joined = np.concatenate([part[step][microbatch]["tokens"] for part in parts])
            np.testing.assert_array_equal(joined, whole[step][microbatch]["tokens"])
    assert [source.reads for source in sources] == [2 * 2 * 2 * 2] * 2  # each step is read twice, 4 rows each time


def test_each_process_reads_only_its_contexts(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = LabelledContexts.read(data, "train", Window(Tokenizer(tokenizer_path("nano")), 32))
    sizes = np.array([len(contexts[i].tokens) for i in range(len(contexts))])
    whole = loader.labelled_batches(contexts, 12, 2, seed=1, multiple=2)
    halves = [lambda n: np.arange(n // 2), lambda n: np.arange(n // 2, n)]
    parts = [loader.labelled_batches(contexts, 12, 2, 1, 2, ProcessShare(half, sizes)) for half in halves]
    for microbatch, expected in enumerate(whole[3]):
        for name, rows in expected.items():
            np.testing.assert_array_equal(np.concatenate([part[3][microbatch][name] for part in parts]), rows)
    read: list[int] = []
    plain = LabelledContexts.__getitem__
    monkeypatch.setattr(LabelledContexts, "__getitem__", lambda self, i: read.append(int(i)) or plain(self, i))
    first, second = (read[:] for part in parts if (read.clear(), part[3]))
    assert len(first) + len(second) == 12
    assert not set(first) & set(second)


def test_a_process_without_the_others_is_an_error() -> None:
    script = """
from jaxtempl.parallel import process_group
from jaxtempl.config.training import AdaptConfig
process_group.START_SECONDS = 2
with process_group.join(AdaptConfig(coordinator="localhost:1", num_processes=2, process_id=1)):
    print("here")
"""
    done = run_script(script)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("error: the other processes did not join within 2 s; check")


def test_several_processes_must_use_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AdaptConfig(mesh_data=1, mesh_fsdp=2, mesh_tensor=2)
    assert trainer.resolve_mesh(config, tiny.ARCHITECTURE, 8192, 8) == MeshShape(1, 2, 2)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="has 4 devices, and the 2 processes have 8"):
        trainer.resolve_mesh(config, tiny.ARCHITECTURE, 8192, 8)


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ({"coordinator": "a:1"}, "num_processes is missing"),
        ({"coordinator": "a:1", "num_processes": 2}, "process_id is missing"),
        ({"num_processes": 2, "process_id": 0}, "coordinator is missing"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process_id=2 of --num_processes=2"),
    ],
)
def test_a_partly_described_group_is_refused(flags: dict[str, Any], missing: str) -> None:
    with pytest.raises(UsageError, match=missing), process_group.join(AdaptConfig(**flags)):
        pass


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, True),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, True),
        ({"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "a"}, True),
        ({"a chip": ""}, True),
    ],
)
def test_a_launcher_of_several_processes_is_recognised(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], joins: bool
) -> None:
    """The environments are from the documentation of the launchers."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "a chip" in environment:  # a host of a TPU pod sets no variable; JAX queries its metadata server
        monkeypatch.setattr(process_group, "TPU_CHIPS", ("/dev/null",))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    calls: list[Any] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **named: calls.append((args, named)) or 1 / 0)
    with contextlib.suppress(ZeroDivisionError), process_group.join(AdaptConfig()):
        pass
    assert bool(calls) == joins
    assert all(args == (None, None, None) for args, _ in calls)


def test_a_process_alone_on_its_host_uses_all_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    local = {}
    for tasks in ("1(x4)", "8(x2)"):
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
        monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
        calls: list[Any] = []
        monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **named: calls.append(named) or 1 / 0)  # noqa: B023
        with contextlib.suppress(ZeroDivisionError), process_group.join(AdaptConfig()):
            pass
        local[tasks] = calls[0]["local_device_ids"]
    assert local == {"1(x4)": [], "8(x2)": None}


def test_a_process_computes_the_rows_of_its_devices() -> None:
    mesh = make_mesh(MeshShape(2, 2, 2))
    np.testing.assert_array_equal(rules.local_rows(mesh, 8), np.arange(8))
