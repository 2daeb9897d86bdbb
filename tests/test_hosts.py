"""Several real processes on one machine train as one: the same numbers, one checkpoint, one end."""

import functools
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from hosts import Hosts, told

from jaxtempl import batches, files, partition
from jaxtempl.batches import Contexts, Share
from jaxtempl.config import tokenizer_path
from jaxtempl.dataset import Dataset
from jaxtempl.partition import Shape
from jaxtempl.run import Run
from jaxtempl.tokenizer import Tokenizer

STEPS = 9


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("hosts") / "made")


def adapt(data: Dataset, out: Path, *flags: str) -> tuple[str, ...]:
    """The same training, however many processes it has; each saves all it needs as often as it can."""
    common = ["--size=nano", f"--data={data.folder}", "--batch=16", f"--steps={STEPS}", "--save_every=99"]
    return "adapt", *common, "--recover_minutes=0", "--precision=fp32", f"--out={out}", *flags


@pytest.fixture(scope="module")
def alone(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process of two devices, never interrupted."""
    folder = tmp_path_factory.mktemp("alone")
    with Hosts(folder, 1, *adapt(data, folder / "run")) as hosts:
        assert hosts.codes() == [0], hosts.said(0)
    return folder / "run"


def same(one: Path, other: Path) -> None:
    """Losses of each step and parameters at the end, to the rounding of float32."""
    losses = [told(folder) for folder in (one, other)]
    assert list(losses[0]) == list(losses[1])
    np.testing.assert_allclose(list(losses[0].values()), list(losses[1].values()), rtol=2e-5)
    last = [Run(folder).params(Run(folder).checkpoints.steps()[-1]) for folder in (one, other)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-4), *last)


def test_two_then_four_then_one_process_train_what_one_does(data: Dataset, alone: Path, tmp_path: Path) -> None:
    """SIGTERM to one of them stops all at one step, saved; the next ones go on from there, be they more or fewer."""
    out, done = tmp_path / "run", 0
    for count, mesh in ((2, "--mesh.fsdp=2"), (4, "--mesh.tensor=2"), (1, "--mesh.data=2")):
        with Hosts(tmp_path, count, *adapt(data, out, mesh)) as hosts:
            if count > 1:
                hosts.wait_until(lambda: len(told(out)) > done)  # noqa: B023
                hosts.signal(count - 1, signal.SIGTERM)
                assert hosts.codes() == [75] * count, hosts.said(0)
                assert f"stopped after step {max(told(out))}" in hosts.said(0)
                done = max(told(out))
                assert Run(out).checkpoints.resumable() == done < STEPS
                parts = {name.split("/")[1] for name in manifest(out, done)["files"] if "ocdbt.process" in name}
                assert parts == {f"ocdbt.process_{index}" for index in range(count)}
            else:
                assert hosts.codes() == [0], hosts.said(0)
    same(alone, out)


def manifest(out: Path, step: int) -> dict[str, Any]:
    return files.read_json(out / "checkpoints" / str(step) / "manifest.json")


def test_two_processes_tune_what_one_does(data: Dataset, tmp_path: Path) -> None:
    flags = ("finetune", "--size=nano", "--length=32", f"--data={data.folder}", "--batch=12", "--steps=4")
    for count in (1, 2):
        out = tmp_path / str(count)
        with Hosts(tmp_path, count, *flags, "--rate=1e-3", f"--out={out}", devices=2 // count) as hosts:
            assert hosts.codes() == [0] * count, hosts.said(0)
    same(tmp_path / "1", tmp_path / "2")


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end_when_one_is_killed_and_the_run_goes_on(
    data: Dataset, alone: Path, tmp_path: Path, victim: int
) -> None:
    out = tmp_path / "run"
    with Hosts(tmp_path, 2, *adapt(data, out)) as hosts:
        hosts.wait_until(lambda: len(told(out)) > 1)
        hosts.signal(victim, signal.SIGKILL)
        codes = hosts.codes(60)
    assert codes[1 - victim] == 1, hosts.said(1 - victim)
    assert f"error: process {victim} on " in hosts.said(1 - victim).splitlines()[-1]
    with Hosts(tmp_path, 1, *adapt(data, out)) as hosts:
        assert hosts.codes() == [0], hosts.said(0)
    same(alone, out)


@pytest.mark.parametrize(
    ("own", "line"),
    [
        (
            "--rate=1e-4",
            "the processes disagree about the settings: process 0 has 'rate: 0.0015', process 1 has 'rate: 0.0001'",
        ),
        ("--data=nowhere", "nowhere is no dataset"),
    ],
)
def test_what_one_process_cannot_do_ends_all_of_them_with_its_reason(
    data: Dataset, tmp_path: Path, own: str, line: str
) -> None:
    with Hosts(tmp_path, 2, *adapt(data, tmp_path / "run"), own={1: own}) as hosts:
        assert hosts.codes(60) == [1, 1]
    for index in (0, 1):
        (said,) = [each for each in hosts.said(index).splitlines() if each.startswith("error: ")]
        assert line in said
    assert not (tmp_path / "run" / "checkpoints").exists()


class Counted(list[Any]):
    """Rows that count how often they are read."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        return super().__getitem__(index)


def test_each_process_reads_its_rows_alone() -> None:
    made = [{"tokens": np.full(8, i, np.uint16), "segments": np.ones(8, np.uint16)} for i in range(24)]
    whole = batches.row_batches([(made, None)], 8, 2, seed=3)
    shares = [np.array([0, 1]), np.array([2, 3])]
    sources = [Counted(made) for _ in shares]
    parts = [
        batches.row_batches([(source, None)], 8, 2, 3, own=lambda _, share=share: share)
        for source, share in zip(sources, shares, strict=True)
    ]
    for step in (0, 4):
        for piece in range(2):
            joined = np.concatenate([part[step][piece]["tokens"] for part in parts])
            np.testing.assert_array_equal(joined, whole[step][piece]["tokens"])
    assert [source.reads for source in sources] == [2 * 2 * 2 * 2] * 2  # each step was asked for twice, 4 rows a time


def test_each_process_reads_its_contexts_alone(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = Contexts(data, "train", Tokenizer(tokenizer_path("nano")), 32)
    sizes = np.array([len(contexts[i].tokens) for i in range(len(contexts))])
    whole = batches.labelled_batches(contexts, 12, 2, seed=1, multiple=2)
    halves = [lambda n: np.arange(n // 2), lambda n: np.arange(n // 2, n)]
    parts = [batches.labelled_batches(contexts, 12, 2, 1, 2, Share(half, sizes)) for half in halves]
    for piece, expected in enumerate(whole[3]):
        for name, rows in expected.items():
            np.testing.assert_array_equal(np.concatenate([part[3][piece][name] for part in parts]), rows)
    read: list[int] = []
    plain = Contexts.__getitem__
    monkeypatch.setattr(Contexts, "__getitem__", lambda self, i: read.append(int(i)) or plain(self, i))
    first, second = (read[:] for part in parts if (read.clear(), part[3]))
    assert len(first) + len(second) == 12
    assert not set(first) & set(second)


def test_a_process_owns_the_rows_of_its_devices() -> None:
    mesh = partition.make_mesh(Shape(2, 2, 2))
    np.testing.assert_array_equal(partition.own_rows(mesh, 8), np.arange(8))
