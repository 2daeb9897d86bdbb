"""How large the activations of a graph become on real contexts, which static scales are made of. No JAX."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from tqdm import tqdm

from converters.verify.verify import Row
from jaxtempl.bundle import onnx_check
from jaxtempl.errors import UserError
from jaxtempl.serve.inference.backends import OnnxRuntime


def absolute_maxima(
    model: Path, names: Sequence[str], rows: Sequence[Row], progress: bool = False
) -> Mapping[str, float]:
    """The largest magnitude of each named value over all rows.

    Rows are run one by one, so that no padding is measured. On a nano run fine-tuned on star, ranges without the
    largest 0.1 % to 0.001 % brought logits less than a tenth nearer to the float ones, or took them farther.

    Args:
        model: a graph; a copy that tells is written beside it for as long as this takes.
        names: floating-point values of it.
        rows: token ids of each context.
        progress: show a bar.

    Raises:
        UserError: a value is not finite.
    """
    beside = model.with_name("calibrating.onnx")  # beside it, where its external data is
    onnx.save(_telling(onnx_check.load_graph(model), names), beside)
    network = OnnxRuntime(beside, spin=False)
    beside.unlink()
    found = np.zeros(len(names))
    for row in tqdm(rows, desc="calibrating", unit=" contexts", disable=not progress):
        told = network.run([_told(name) for name in names], np.array([row], np.int32), np.array([len(row)], np.int32))
        found = np.maximum(found, np.array(told, np.float64))  # a NaN stays one
    for name, value in zip(names, found, strict=True):
        if not np.isfinite(value):
            raise UserError(
                f"{name} is not finite in fp16 on real contexts, so it has no scale; try --wide_residual=true"
            )
    return dict(zip(names, found.tolist(), strict=True))


def _telling(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with the largest magnitude of each value as an output."""
    for name in names:
        told = _told(name)
        model.graph.node.append(helper.make_node("Abs", [name], [f"{told}/abs"]))
        model.graph.node.append(helper.make_node("ReduceMax", [f"{told}/abs"], [told], keepdims=0))
        model.graph.output.append(helper.make_empty_tensor_value_info(told))
    return model


def _told(name: str) -> str:
    return f"{name}/largest"
