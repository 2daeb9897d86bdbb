"""Checkpoints through Orbax: whole or not there, two kinds, restored exactly, written while training goes on.

`checkpoints/<step>/` holds the items `params`, `optimizer` (recovery checkpoints alone) and `meta`, each of plain
nested dicts, and a manifest of sha256 sums; a folder without its manifest is torn and never read. Every process writes
its part into `.<step>.partial` and sums it up there; the main one joins the sums into the manifest and gives the folder
its name, which is the commit.
"""

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxtempl import files
from jaxtempl.errors import UserError, first_line
from jaxtempl.parallel import process_group

CheckpointKind = Literal["study", "recovery"]
SUMS_FOLDER = "sums"  # folder of what each process says of its part, until they are joined


class Checkpoints:
    """The checkpoints of one run.

    A step is the number of updates done. `study` checkpoints are kept; of `recovery` ones, the newest `keep`.

    Attributes:
        folder: where they lie.
        keep: that many.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keep = 2
        self._sound: set[int] = set()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None

    def steps(self, kind: CheckpointKind | None = None) -> list[int]:
        """Steps of the whole checkpoints, in order; those of one kind, if it is named."""
        found = sorted(int(p.parent.name) for p in self.folder.glob("*/manifest.json") if p.parent.name.isdigit())
        return [s for s in found if kind is None or self._manifest(s).get("kind") == kind]

    def shared_steps(self) -> list[int]:
        """The steps that the main process sees, for a shared folder may show another host an older state."""
        return json.loads(process_group.broadcast(json.dumps(self.steps())))

    def save(
        self, step: int, kind: CheckpointKind, params: PyTree, optimizer: PyTree | None, meta: Mapping[str, Any]
    ) -> None:
        """Copies all items to the host and returns; they are written and committed meanwhile. All processes call it.

        A checkpoint takes the place of an older one of the same step.

        Raises:
            UserError: the save before this one failed.
        """
        self.wait()
        items: dict[str, Any] = {"params": ocp.args.PyTreeSave(params), "meta": ocp.args.JsonSave(dict(meta))}
        if optimizer is not None:
            items["optimizer"] = ocp.args.PyTreeSave(optimizer)
        partial = (self.folder / f".{step}.partial").resolve()
        writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        with _told(partial):
            writer.save(partial, ocp.args.Composite(**items))
        self._saving = self._thread.submit(self._commit, writer, partial, step, kind)

    def raise_if_failed(self) -> None:
        """Raises UserError when the save in hand has failed by now."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the save in hand.

        Raises:
            UserError: it failed: a full disk, no permission.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _commit(self, writer: ocp.AsyncCheckpointer, partial: Path, step: int, kind: CheckpointKind) -> None:
        with _told(partial):
            with contextlib.closing(writer):
                writer.wait_until_finished()
            files.write_json(
                partial / SUMS_FOLDER / f"{jax.process_index()}.json", {"files": files.sums(partial, _is_own)}
            )
            process_group.barrier(f"sums of {step}")
            if process_group.is_main():
                _join_sums(partial, {"kind": kind, "step": step})
                files.move_into_place(partial, self.folder / str(step))
                for old in self.steps("recovery")[: -self.keep]:
                    self._remove(old)
            process_group.barrier(f"commit of {step}")

    def _remove(self, step: int) -> None:
        """Takes its name first, so that what a kill leaves of it does not count."""
        going = self.folder / f".{step}.old.partial"
        (self.folder / str(step)).rename(going)
        shutil.rmtree(going)

    def remove_partial(self) -> None:
        """Removes what saves that were cut off have left; for the main process of those that train here."""
        for path in self.folder.glob(".*.partial*"):
            shutil.rmtree(path)

    def params(self, step: int, like: PyTree) -> PyTree:
        """The parameters of a step that `like` has (arrays or their shapes), in its shapes and placement."""
        return _restore_tree(self._whole(step) / "params", like)

    def optimizer(self, step: int, like: PyTree) -> PyTree:
        """The optimizer's state of a step."""
        return _restore_tree(self._whole(step) / "optimizer", like)

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays."""
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(self._whole(step) / "meta")

    def newest_resumable(self) -> int | None:
        """The newest undamaged step that holds an optimizer, or None where there never was one. All processes call it.

        Newer ones are put aside, so that what is kept from here on is whole, and it is said.

        Raises:
            UserError: all of them are damaged.
        """
        there = [step for step in self.shared_steps() if (self.folder / str(step) / "optimizer").is_dir()]
        for step in reversed(there):
            wrong = self._damaged(step)
            if not wrong:
                return step
            if process_group.is_main():
                print(f"{_damage(self.folder / str(step), wrong)}; going back to the one before", file=sys.stderr)
                (self.folder / str(step)).replace(self.folder / f"{step}.damaged")
            process_group.barrier(f"damaged {step}")
        if there:
            raise UserError(f"all checkpoints of {self.folder} are damaged; remove the run's folder to begin again")
        return None

    def _manifest(self, step: int) -> dict[str, Any]:
        """Empty where it cannot be read."""
        try:
            return files.read_json(self.folder / str(step) / "manifest.json")
        except UserError:
            return {}

    def _whole(self, step: int) -> Path:
        """Raises UserError when there is no such checkpoint or a file of it is not what was written."""
        path = self.folder / str(step)
        if step not in self.steps():
            raise UserError(f"{self.folder} has no whole checkpoint {step}; there are {self.steps() or 'none'}")
        wrong = self._damaged(step)
        if wrong:
            raise UserError(f"{_damage(path, wrong)}; name another step, or remove that folder")
        return path.resolve()

    def _damaged(self, step: int) -> list[str]:
        """Files that are not what was written; each process reads its share of them, once."""
        if step in self._sound:
            return []
        sums = sorted(self._manifest(step).get("files", {"manifest.json": ""}).items())
        own = sums[jax.process_index() :: jax.process_count()]
        wrong = [name for name, digest in own if not _is(self.folder / str(step) / name, digest)]
        wrong = [name for said in process_group.all_gather_text("\n".join(wrong)) for name in said.splitlines()]
        self._sound |= set() if wrong else {step}
        return wrong


def _damage(path: Path, wrong: list[str]) -> str:
    return f"{path} is damaged: {', '.join(sorted(wrong))} differ from the manifest"


@contextlib.contextmanager
def _told(partial: Path) -> Generator[None]:
    """A failed save as one line; what is left of it goes with the next start."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, TimeoutError):  # another process has gone, not the disk
        raise
    except (OSError, ValueError, RuntimeError) as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))  # as tensorstore tells it, after many paths
        number = int(number.group(1)) if number else getattr(error, "errno", None)
        line = os.strerror(number) if number else first_line(error)
        advice = ": make room or give permission, and start the same command again" if number else ""
        raise UserError(
            f"checkpoint {partial.name.split('.')[1]} could not be saved in {partial.parent}: {line}; older ones are "
            f"whole{advice}"
        ) from error


def _is_own(name: str) -> bool:
    """Whether this process wrote a file: Orbax names a process's own after it, and the main one writes all else."""
    found = re.search(r"process_(\d+)(/|$)", name)
    if found:
        return int(found.group(1)) == jax.process_index()
    return process_group.is_main() and not name.startswith(f"{SUMS_FOLDER}/")


def _join_sums(partial: Path, facts: Mapping[str, Any]) -> None:
    """The manifest, out of what each process says of its part."""
    said = [
        files.read_json(partial / SUMS_FOLDER / f"{process}.json")["files"] for process in range(jax.process_count())
    ]
    shutil.rmtree(partial / SUMS_FOLDER)
    sums = {name: digest for part in said for name, digest in part.items()}
    files.write_json(partial / "manifest.json", {**facts, "files": dict(sorted(sums.items()))})


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and files.sha256(path) == digest


def _restore_tree(path: Path, like: PyTree) -> PyTree:
    """The leaves that `like` has, in its shapes and placement; others are not read."""
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    arguments = ocp.args.PyTreeRestore(
        wanted, ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, arguments)
