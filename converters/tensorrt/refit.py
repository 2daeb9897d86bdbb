"""A new template head in a plan that exists: its weights are exchanged, nothing is built.

What an engine was built from is kept as two digests, of the graph and of all weights but the head's, so that another
bundle's head goes only where all else is the same.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from jaxtyping import Shaped

from jaxtempl.bundle import onnx_check
from jaxtempl.bundle.bundle import Bundle
from jaxtempl.errors import UserError
from jaxtempl.serve.inference import tensorrt
from jaxtempl.serve.inference.tensorrt import Machine, check_result

HEAD_WEIGHTS = ("head", "head/bias")  # the second is there where slots are padded (`--slots`), and in BERT


class GraphDigests(NamedTuple):
    """What a graph is, without the head's values.

    Attributes:
        graph: of nodes, inputs, outputs, and every weight's name, type and shape.
        trunk: of the values of all weights but the head's.
    """

    graph: str
    trunk: str


def graph_digests(model: Path) -> GraphDigests:
    """Reads an ONNX file, and one weight at a time."""
    told = onnx_check.load_graph(model)
    graph = told.graph
    shapes = [f"{w.name} {w.data_type} {list(w.dims)}" for w in graph.initializer]
    parts = (*graph.input, *graph.output, *told.opset_import, *graph.node)
    written = (part.SerializeToString(deterministic=True) for part in parts)
    trunk = (
        value for weight in graph.initializer if weight.name not in HEAD_WEIGHTS for value in _named(model, weight)
    )
    return GraphDigests(_sum([*(shape.encode() for shape in shapes), *written]), _sum(trunk))


def _named(model: Path, weight: onnx.TensorProto) -> tuple[bytes, bytes]:
    return weight.name.encode(), hashlib.sha256(_values(model, weight).tobytes()).digest()


def _values(model: Path, weight: onnx.TensorProto) -> Shaped[np.ndarray, "..."]:
    return onnx.numpy_helper.to_array(weight, str(model.parent))


def _sum(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def refittable_weights(model: Path) -> list[str]:
    """The weights that an engine of this graph is built to have exchanged: the head's, where it has spare slots."""
    names = {weight.name for weight in onnx_check.load_graph(model).graph.initializer}
    return list(HEAD_WEIGHTS) if names.issuperset(HEAD_WEIGHTS) else []


def head_weights(model: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The head's weights by name."""
    found = (weight for weight in onnx_check.load_graph(model).graph.initializer if weight.name in HEAD_WEIGHTS)
    return {weight.name: np.ascontiguousarray(_values(model, weight)) for weight in found}


def check(built: Bundle, new: Bundle) -> None:
    """Raises UserError unless the engine of `built` becomes that of `new` by its head alone.

    Args:
        built: has an engine.
        new: has an ONNX graph.
    """
    known: Mapping[str, Any] = built.manifest["engine"]
    anew = f"build an engine of {new.folder} without --refit"
    if not known["refittable"]:
        raise UserError(f"the engine in {built.folder} has no spare slots, so its head is fixed (--slots): {anew}")
    found = graph_digests(new.model)
    if found.graph != known["graph"]:
        raise UserError(
            f"{new.folder} is another graph than that of {built.folder} (size, dtype, form or number of slots): {anew}"
        )
    if found.trunk != known["trunk"]:
        raise UserError(f"{new.folder} differs from {built.folder} in more than its head (other training): {anew}")


def stays_refittable(trt: Any) -> bool:
    """Whether a plan that was refitted can be refitted again: since TensorRT 10.14."""
    return hasattr(trt.SerializationFlag, "INCLUDE_REFIT")


def refit(machine: Machine, plan: bytes, weights: Mapping[str, Shaped[np.ndarray, "..."]]) -> Any:
    """The plan with other weights in it, as a buffer.

    Args:
        machine: that the plan was built for.
        plan: its bytes.
        weights: by the names that it was built to have refitted.

    Raises:
        UserError: TensorRT does not take them.
    """
    trt, log = machine.trt, tensorrt.error_logger(machine.trt)
    runtime = trt.Runtime(log)
    loaded = check_result(log, runtime.deserialize_cuda_engine(plan), "load the plan")
    refitter = trt.Refitter(loaded, log)
    for name, values in weights.items():
        check_result(log, refitter.set_named_weights(name, trt.Weights(values)), f"exchange {name}")
    missing = refitter.get_missing_weights()
    check_result(log, not missing, f"refit the plan without {', '.join(missing)}")
    check_result(log, refitter.refit_cuda_engine(), "refit the plan")
    flags = loaded.create_serialization_config()
    flags.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if stays_refittable(trt):
        flags.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return check_result(log, loaded.serialize_with_config(flags), "write the plan")
