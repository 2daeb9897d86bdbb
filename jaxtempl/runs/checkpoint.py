"""Atomic, asynchronous checkpoints through Orbax.

`checkpoints/<step>/` holds the items `params`, `optimizer` (recovery checkpoints only) and `meta`, each of plain nested
dicts, and a manifest of sha256 sums. A folder without a manifest is incomplete and never read. Every process writes its
part and its sums into `.<step>.partial`; the main process then joins the sums into the manifest and renames the folder,
which commits it.
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
SUMS_FOLDER = "sums"  # folder of the sums of each process, until they are joined


class Checkpoints:
    """The checkpoints of one run.

    A step is the number of completed updates. `study` checkpoints stay, and the newest `keep` `recovery` ones.

    Attributes:
        folder: Folder of the checkpoints.
        keep: Number of recovery checkpoints to keep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keep = 2
        self._verified: set[int] = set()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None

    def steps(self, kind: CheckpointKind | None = None) -> list[int]:
        """Return the steps of complete checkpoints in order, of one kind if it is given."""
        steps = sorted(int(p.parent.name) for p in self.folder.glob("*/manifest.json") if p.parent.name.isdigit())
        return [s for s in steps if kind is None or self._manifest(s).get("kind") == kind]

    def shared_steps(self) -> list[int]:
        """Return the steps that the main process sees; a shared folder may show other hosts an older state."""
        return json.loads(process_group.broadcast(json.dumps(self.steps())))

    def save(
        self, step: int, kind: CheckpointKind, params: PyTree, optimizer: PyTree | None, meta: Mapping[str, Any]
    ) -> None:
        """Copy all items to the host and return; a thread writes and commits them. All processes must call it.

        A checkpoint replaces an older one of the same step.

        Raises:
            UserError: The previous save failed.
        """
        self.wait()
        items: dict[str, Any] = {"params": ocp.args.PyTreeSave(params), "meta": ocp.args.JsonSave(dict(meta))}
        if optimizer is not None:
            items["optimizer"] = ocp.args.PyTreeSave(optimizer)
        partial = (self.folder / f".{step}.partial").resolve()
        writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        with _save_errors(partial):
            writer.save(partial, ocp.args.Composite(**items))
        self._saving = self._thread.submit(self._commit, writer, partial, step, kind)

    def raise_if_failed(self) -> None:
        """Raise UserError if the pending save has failed by now."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the pending save.

        Raises:
            UserError: The save failed, as on a full disk or without permission.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _commit(self, writer: ocp.AsyncCheckpointer, partial: Path, step: int, kind: CheckpointKind) -> None:
        with _save_errors(partial):
            with contextlib.closing(writer):
                writer.wait_until_finished()
            files.write_json(
                partial / SUMS_FOLDER / f"{jax.process_index()}.json", {"files": files.sums(partial, _is_local)}
            )
            process_group.barrier(f"sums of {step}")
            if process_group.is_main():
                _join_sums(partial, {"kind": kind, "step": step})
                files.move_into_place(partial, self.folder / str(step))
                for old in self.steps("recovery")[: -self.keep]:
                    self._remove(old)
            process_group.barrier(f"commit of {step}")

    def _remove(self, step: int) -> None:
        """Delete a checkpoint; renaming it first keeps a partly deleted one from being read."""
        partial = self.folder / f".{step}.old.partial"
        (self.folder / str(step)).rename(partial)
        shutil.rmtree(partial)

    def remove_partial(self) -> None:
        """Remove what interrupted saves left. Only the main process of a training calls it."""
        for path in self.folder.glob(".*.partial*"):
            shutil.rmtree(path)

    def params(self, step: int, like: PyTree) -> PyTree:
        """Return the parameters of a step that `like` has (arrays or shapes), with its shapes and shardings."""
        return _restore_tree(self._verified_path(step) / "params", like)

    def optimizer(self, step: int, like: PyTree) -> PyTree:
        """Return the optimizer state of a step."""
        return _restore_tree(self._verified_path(step) / "optimizer", like)

    def meta(self, step: int) -> dict[str, Any]:
        """Return the metadata saved with a step."""
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(self._verified_path(step) / "meta")

    def newest_resumable(self) -> int | None:
        """Return the newest undamaged step with optimizer state, or None without one. All processes must call it.

        Damaged newer checkpoints are reported and renamed to `<step>.damaged`.

        Raises:
            UserError: All of them are damaged.
        """
        steps = [step for step in self.shared_steps() if (self.folder / str(step) / "optimizer").is_dir()]
        for step in reversed(steps):
            damaged = self._damaged_files(step)
            if not damaged:
                return step
            if process_group.is_main():
                print(f"{_damage(self.folder / str(step), damaged)}; resuming from the one before", file=sys.stderr)
                (self.folder / str(step)).replace(self.folder / f"{step}.damaged")
            process_group.barrier(f"damaged {step}")
        if steps:
            raise UserError(f"all checkpoints in {self.folder} are damaged; remove the run's folder to start again")
        return None

    def _manifest(self, step: int) -> dict[str, Any]:
        """Return the manifest of a step, empty if it cannot be read."""
        try:
            return files.read_json(self.folder / str(step) / "manifest.json")
        except UserError:
            return {}

    def _verified_path(self, step: int) -> Path:
        """Return the folder of a step. Raises UserError if it does not exist or is damaged."""
        path = self.folder / str(step)
        if step not in self.steps():
            raise UserError(f"{self.folder} has no complete checkpoint {step}; available: {self.steps() or 'none'}")
        damaged = self._damaged_files(step)
        if damaged:
            raise UserError(f"{_damage(path, damaged)}; name another step, or remove that folder")
        return path.resolve()

    def _damaged_files(self, step: int) -> list[str]:
        """Return the files whose sum differs from the manifest; each process reads its share of them, once."""
        if step in self._verified:
            return []
        sums = sorted(self._manifest(step).get("files", {"manifest.json": ""}).items())
        share = sums[jax.process_index() :: jax.process_count()]
        local = [name for name, digest in share if not _matches(self.folder / str(step) / name, digest)]
        damaged = [name for text in process_group.all_gather_text("\n".join(local)) for name in text.splitlines()]
        self._verified |= set() if damaged else {step}
        return damaged


def _damage(path: Path, names: list[str]) -> str:
    return f"{path} is damaged: {', '.join(sorted(names))} differ from the manifest"


@contextlib.contextmanager
def _save_errors(partial: Path) -> Generator[None]:
    """Turn a failed save into a one-line UserError; the next start removes its remains."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, TimeoutError):  # another process is lost, not the disk
        raise
    except (OSError, ValueError, RuntimeError) as error:
        match = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's format
        number = int(match.group(1)) if match else getattr(error, "errno", None)
        line = os.strerror(number) if number else first_line(error)
        advice = ": make room or give permission, and start the same command again" if number else ""
        raise UserError(
            f"checkpoint {partial.name.split('.')[1]} could not be saved in {partial.parent}: {line}; older ones are "
            f"complete{advice}"
        ) from error


def _is_local(name: str) -> bool:
    """Return whether this process wrote a file: Orbax puts the process into its name, or the main one wrote it."""
    match = re.search(r"process_(\d+)(/|$)", name)
    if match:
        return int(match.group(1)) == jax.process_index()
    return process_group.is_main() and not name.startswith(f"{SUMS_FOLDER}/")


def _join_sums(partial: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest from the sums of all processes."""
    parts = [
        files.read_json(partial / SUMS_FOLDER / f"{process}.json")["files"] for process in range(jax.process_count())
    ]
    shutil.rmtree(partial / SUMS_FOLDER)
    sums = {name: digest for part in parts for name, digest in part.items()}
    files.write_json(partial / "manifest.json", {**facts, "files": dict(sorted(sums.items()))})


def _matches(path: Path, digest: str) -> bool:
    return path.is_file() and files.sha256(path) == digest


def _restore_tree(path: Path, like: PyTree) -> PyTree:
    """Restore the leaves that `like` has, with its shapes and shardings; others are not read."""
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    arguments = ocp.args.PyTreeRestore(
        target, ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, arguments)
