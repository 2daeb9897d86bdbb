"""Checkpoints through Orbax: whole or not there, two kinds, restored exactly.

`checkpoints/<step>/` holds the items `params`, `optimizer` (recovery checkpoints alone) and `meta`, each of plain
nested dicts, and a manifest of sha256 sums; a folder without its manifest is torn and never read.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxtempl import files
from jaxtempl.errors import UserError

KEPT_RECOVERIES = 2
Kind = Literal["study", "recovery"]


class Checkpoints:
    """The checkpoints of one run.

    A step is the number of updates done. `study` checkpoints are kept; of `recovery` ones, the newest two.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self, kind: Kind | None = None) -> list[int]:
        """Steps of the whole checkpoints, in order; those that hold an optimizer only, for `recovery`."""
        found = sorted(int(p.parent.name) for p in self.folder.glob("*/manifest.json") if p.parent.name.isdigit())
        return [s for s in found if kind is None or self._manifest(s)["kind"] == kind]

    def save(self, step: int, kind: Kind, params: PyTree, optimizer: PyTree | None, meta: Mapping[str, Any]) -> None:
        """Writes all items, then the manifest, then gives the folder its name; drops recoveries beyond the newest two.

        A checkpoint takes the place of an older one of the same step.
        """
        path = self.folder / str(step)
        with files.atomic_folder(path, replace=True) as temporary:
            _save_tree(temporary / "params", params)
            if optimizer is not None:
                _save_tree(temporary / "optimizer", optimizer)
            ocp.Checkpointer(ocp.JsonCheckpointHandler()).save(temporary / "meta", dict(meta))
            files.write_json(temporary / "manifest.json", {"kind": kind, "step": step, "files": files.sums(temporary)})
        for old in self.steps("recovery")[:-KEPT_RECOVERIES]:
            shutil.rmtree(self.folder / str(old))

    def sweep(self) -> None:
        """Removes what saves that were cut off have left; for the one process that trains here."""
        for path in self.folder.glob(".*.partial"):
            shutil.rmtree(path)

    def params(self, step: int, like: PyTree) -> PyTree:
        """The parameters of a step that `like` has (arrays or their shapes), in its shapes and placement."""
        return _restore_tree(self._whole(step) / "params", like)

    def optimizer(self, step: int, like: PyTree) -> PyTree:
        """The optimizer's state of a step."""
        return _restore_tree(self._whole(step) / "optimizer", like)

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays."""
        return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(self._whole(step) / "meta")

    def resumable(self) -> int | None:
        """The newest step that holds an optimizer, or None."""
        return max((s for s in self.steps() if (self.folder / str(s) / "optimizer").is_dir()), default=None)

    def _manifest(self, step: int) -> dict[str, Any]:
        return files.read_json(self.folder / str(step) / "manifest.json")

    def _whole(self, step: int) -> Path:
        """Raises UserError when there is no such checkpoint or a file of it is not what was written."""
        path = self.folder / str(step)
        if step not in self.steps():
            raise UserError(f"{self.folder} has no whole checkpoint {step}; there are {self.steps() or 'none'}")
        wrong = {n for n, s in self._manifest(step)["files"].items() if not _is(path / n, s)}
        if wrong:
            raise UserError(
                f"{path} is damaged: {', '.join(sorted(wrong))} differ from the manifest; "
                "remove that folder, and the training goes on from the one before"
            )
        return path.resolve()


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and files.sha256(path) == digest


def _save_tree(path: Path, tree: PyTree) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.resolve(), tree)


def _restore_tree(path: Path, like: PyTree) -> PyTree:
    """The leaves that `like` has, in its shapes and placement; others are not read."""
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    arguments = ocp.args.PyTreeRestore(
        wanted, ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, arguments)
