"""Tests that the same command resumes an interrupted training, with real processes and signals."""

import shutil
import signal
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import pytest
import tiny
from hosts import NO_ROOM, Hosts, run_script
from rig import STEPS, Rig

from bench import kill
from bench.kill import read_losses
from jaxtempl import cli
from jaxtempl.__main__ import command
from jaxtempl.config.sizes import tokenizer_path
from jaxtempl.data import loader
from jaxtempl.data.dataset import Dataset
from jaxtempl.errors import Interrupted, UserError
from jaxtempl.runs.run import Run
from jaxtempl.text.tokenizer import Tokenizer
from jaxtempl.training import state
from jaxtempl.training.loop import Schedule


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("interruptions") / "made")


def same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_a_run_killed_five_times_has_the_same_bits(tmp_path: Path) -> None:
    results = kill.measure(tmp_path, kills=5, steps=24, seed=3)
    assert len(results["kills"]) == sum(results["phases"].values()) == 5
    assert results["same_bits"]
    assert results["kills"][-1]["loaded"], "the last kill must resume from a checkpoint"


def adapt(data: Dataset, out: Path, *flags: str) -> tuple[str, ...]:
    common = ("--size=nano", f"--data={data.folder}", "--batch_size=4", "--steps=500", "--save_every=500")
    return ("adapt", *common, f"--out={out}", *flags)


def test_sigterm_saves_and_states_the_step(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Hosts(tmp_path, 1, *adapt(data, out), devices=1) as hosts:
        hosts.wait_until(lambda: len(read_losses(out)) > 2)
        hosts.signal(0, signal.SIGTERM)
        assert hosts.codes() == [75], hosts.stderr(0)
    done = Run(out).checkpoints.newest_resumable()
    assert done == max(read_losses(out))
    assert hosts.stderr(0).splitlines()[-1] == f"stopped after step {done}; run the same command again to resume"


def test_a_second_sigterm_exits_immediately() -> None:
    script = """
import hashlib, os, signal, threading
from jaxtempl.training.preemption import PreemptionHandler
with PreemptionHandler() as terminator:
    terminator.defer()
    os.kill(os.getpid(), signal.SIGTERM)
    print(terminator.requested, flush=True)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in C, where no Python handler runs
"""
    done = run_script(script)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "True\n")
    assert "a second one ends at once" in done.stderr


def test_sigterm_before_the_first_step_exits_with_75() -> None:
    script = """
import os, signal, sys
from jaxtempl import cli
from jaxtempl.training.preemption import PreemptionHandler
def main(argv):
    with PreemptionHandler():
        os.kill(os.getpid(), signal.SIGTERM)
        print("still here")
sys.exit(cli.run(main, []))
"""
    done = run_script(script)
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "stopped before the first step; run the same command to start again\n"


def test_a_requested_stop_saves_a_checkpoint_first(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with pytest.raises(Interrupted, match="stopped after step 2"):
        rig.fit(rig.fresh(), stopping=lambda: len(rig.lines()) >= 1 if (tmp_path / "metrics.jsonl").exists() else False)
    assert rig.checkpoints.newest_resumable() == 2
    whole = Rig(tmp_path / "whole")
    same(rig.fit(state.restore_state(rig.fresh(), rig.checkpoints, 2)), whole.fit(whole.fresh()))


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(tmp_path)
    rig.fit(rig.fresh(), plan=Schedule(STEPS, save_every=99, recover_seconds=0.0))
    assert rig.checkpoints.steps("recovery") == [4, 5]
    victim = max((tmp_path / "checkpoints" / "5" / "optimizer").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    again = Rig(tmp_path)
    assert again.checkpoints.newest_resumable() == 4
    stderr = capsys.readouterr().err
    assert (
        f"5 is damaged: optimizer/{victim.relative_to(tmp_path / 'checkpoints' / '5' / 'optimizer')} differ" in stderr
    )
    assert "resuming from the one before" in stderr
    assert again.checkpoints.steps() == [4, 6]
    assert (tmp_path / "checkpoints" / "5.damaged" / "manifest.json").exists()
    (tmp_path / "checkpoints" / "4" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="are damaged; remove the run"):
        Rig(tmp_path).checkpoints.newest_resumable()


def test_keep_sets_the_number_of_recovery_checkpoints(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.checkpoints.keep = 3
    rig.fit(rig.fresh(), plan=Schedule(STEPS, save_every=99, recover_seconds=0.0))
    assert rig.checkpoints.steps("recovery") == [3, 4, 5]


def test_a_full_disk_is_a_one_line_error_and_keeps_older_checkpoints(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    name, *flags = adapt(data, out, "--recover_minutes=0", "--keep=9", "--mesh.data=1", "--mesh.fsdp=1")
    assert cli.run(command(name), [*flags, "--steps=3"]) == 0
    complete = Run(out).checkpoints
    steps, resumable = complete.steps(), complete.newest_resumable()
    more = ("--allow_change=steps", "--save_every=500")
    with Hosts(tmp_path, 1, name, *flags, *more, devices=1, prefix={0: NO_ROOM}) as hosts:
        assert hosts.codes() == [1]
    (message,) = [line for line in hosts.stderr(0).splitlines() if line.startswith("error: ")]
    assert f"could not be saved in {out.resolve()}/checkpoints: File too large; older ones are complete" in message
    assert Run(out).checkpoints.steps() == steps
    assert Run(out).checkpoints.newest_resumable() == resumable == 2


def test_the_order_of_files_on_disk_changes_no_batch(data: Dataset, tmp_path: Path) -> None:
    for path in sorted(data.folder.rglob("*"), reverse=True):
        if path.is_file():
            copy = tmp_path / "copy" / path.relative_to(data.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    tokenizer = Tokenizer(tokenizer_path("nano"))
    streams = [
        loader.row_batches([(each.rows(tokenizer, "train"), None)], 8, 2, seed=1)
        for each in (data, Dataset(tmp_path / "copy"))
    ]
    same(*[[[dict(part) for part in stream[step]] for step in range(4)] for stream in streams])


def test_reader_threads_and_prefetching_change_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"tokens": np.full(4, i, np.uint16), "segments": np.ones(4, np.uint16)} for i in range(40)]
    stream = loader.row_batches([(rows, None)], 8, 2, seed=1)
    plain = [stream[step] for step in range(3, 9)]
    for threads, ahead in ((1, 1), (7, 50), (0, 0)):
        monkeypatch.setattr(loader, "WORKERS", grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
        same([[dict(part) for part in batch] for batch in loader.batches_from(stream, 3, 9)], plain)
