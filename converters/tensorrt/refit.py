"""Refitting: replace the template head's weights in an existing plan, without a build.

An engine records two digests of its ONNX graph: of its structure, and of all weights except the head's. Another
bundle's head is accepted only if both are equal.
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

HEAD_WEIGHTS = ("head", "head/bias")  # the second exists with padded slots (`--slots`) and in BERT


class GraphDigests(NamedTuple):
    """The digests of a graph, without the values of its head.

    Attributes:
        graph: Digest of nodes, inputs, outputs, and every weight's name, type and shape.
        trunk: Digest of the values of all weights except the head's.
    """

    graph: str
    trunk: str


def graph_digests(model: Path) -> GraphDigests:
    """Return the digests of an ONNX file, reading one weight at a time."""
    model_proto = onnx_check.load_graph(model)
    graph = model_proto.graph
    shapes = [f"{w.name} {w.data_type} {list(w.dims)}" for w in graph.initializer]
    parts = (*graph.input, *graph.output, *model_proto.opset_import, *graph.node)
    written = (part.SerializeToString(deterministic=True) for part in parts)
    trunk = (
        value
        for weight in graph.initializer
        if weight.name not in HEAD_WEIGHTS
        for value in _named_digest(model, weight)
    )
    return GraphDigests(_digest([*(shape.encode() for shape in shapes), *written]), _digest(trunk))


def _named_digest(model: Path, weight: onnx.TensorProto) -> tuple[bytes, bytes]:
    return weight.name.encode(), hashlib.sha256(_values(model, weight).tobytes()).digest()


def _values(model: Path, weight: onnx.TensorProto) -> Shaped[np.ndarray, "..."]:
    return onnx.numpy_helper.to_array(weight, str(model.parent))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def refittable_weights(model: Path) -> list[str]:
    """Return the weights that an engine of this graph may have refitted: the head's, if it has spare slots."""
    names = {weight.name for weight in onnx_check.load_graph(model).graph.initializer}
    return list(HEAD_WEIGHTS) if names.issuperset(HEAD_WEIGHTS) else []


def head_weights(model: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Return the head's weights by name."""
    head = (weight for weight in onnx_check.load_graph(model).graph.initializer if weight.name in HEAD_WEIGHTS)
    return {weight.name: np.ascontiguousarray(_values(model, weight)) for weight in head}


def check(built: Bundle, new: Bundle) -> None:
    """Raise UserError unless the engine of `built` and the graph of `new` differ in their heads only.

    Args:
        built: Bundle with an engine.
        new: Bundle with an ONNX graph.
    """
    engine: Mapping[str, Any] = built.manifest["engine"]
    remedy = f"build an engine of {new.folder} without --refit"
    if not engine["refittable"]:
        raise UserError(f"the engine in {built.folder} has no spare slots, so its head is fixed (--slots); {remedy}")
    digests = graph_digests(new.model)
    if digests.graph != engine["graph"]:
        raise UserError(
            f"the graph of {new.folder} differs from that of {built.folder} (size, dtype, form or slots); {remedy}"
        )
    if digests.trunk != engine["trunk"]:
        raise UserError(f"{new.folder} differs from {built.folder} in more than its head (another training); {remedy}")


def stays_refittable(trt: Any) -> bool:
    """Return whether a refitted plan can be refitted again, which needs TensorRT 10.14."""
    return hasattr(trt.SerializationFlag, "INCLUDE_REFIT")


def refit(machine: Machine, plan: bytes, weights: Mapping[str, Shaped[np.ndarray, "..."]]) -> Any:
    """Return the plan with other weights, as a buffer.

    Args:
        machine: Machine that the plan was built for.
        plan: Bytes of the plan.
        weights: Weights by name; all that the plan was built to have refitted.

    Raises:
        UserError: TensorRT rejects them.
    """
    trt, log = machine.trt, tensorrt.error_logger(machine.trt)
    runtime = trt.Runtime(log)
    loaded = check_result(log, runtime.deserialize_cuda_engine(plan), "load the plan")
    refitter = trt.Refitter(loaded, log)
    for name, values in weights.items():
        check_result(log, refitter.set_named_weights(name, trt.Weights(values)), f"replace {name}")
    missing = refitter.get_missing_weights()
    check_result(log, not missing, f"refit the plan without {', '.join(missing)}")
    check_result(log, refitter.refit_cuda_engine(), "refit the plan")
    flags = loaded.create_serialization_config()
    flags.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if stays_refittable(trt):
        flags.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return check_result(log, loaded.serialize_with_config(flags), "write the plan")
