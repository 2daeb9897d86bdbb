"""The classifier of one random set of weights by ONNX Runtime, by Flax, and by transformers with torch, in float32.

Dims: B batch, L length, S slots.
"""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import steps

SLOTS = 1024
PRODUCT = 2048  # rows and columns of the product that tells the processor's speed
SEED = 0

Ask = Callable[[np.ndarray], np.ndarray]  # int32 [B L] of unpadded rows -> float32 [B S]

# Intel's MKL, which torch's products are, asks this of the processor, and leaves AVX-512 alone on another maker's.
AS_INTEL = "int mkl_serv_intel_cpu_true(void) { return 1; }"


def write(size: str, folder: Path) -> None:
    """Write the same weights as a Hugging Face folder `weights`, and as the graphs fp32, fused, fp16 and int8 .onnx."""
    import onnx_ir as ir

    from converters.onnx import graph as onnx_graph
    from converters.onnx.layers import GraphOptions
    from converters.quantize import dynamic_int8
    from jaxtempl.huggingface import save
    from jaxtempl.models import factory

    a = steps.architecture(size)
    params = factory.random_params(a, SLOTS, SEED)
    (folder / "weights").mkdir()
    save.write(folder / "weights", a, params, "template", {"pad_token_id": 1, "num_labels": SLOTS})
    for name, options in {
        "fp32": GraphOptions("template", form="chunked"),
        "fused": GraphOptions("template"),
        "fp16": GraphOptions("template", "fp16"),
    }.items():
        ir.save(onnx_graph.build(params, a, options), folder / f"{name}.onnx")
    dynamic_int8.quantize(folder / "fp32.onnx", folder / "int8.onnx")


def onnx_runtime(folder: Path, threads: int) -> dict[str, Ask]:
    """Return the graphs, and a matrix product for comparison."""
    return {name: _session(folder / f"{name}.onnx", threads) for name in ("fp32", "fused", "fp16", "int8")} | {
        "product": product(threads)
    }


def _session(model: Path | bytes, threads: int) -> Ask:
    from jaxtempl.serve.inference.onnx_session import open_session

    session: Any = open_session(model, threads)
    if isinstance(model, bytes):
        return lambda x: session.run(None, {"x": x})[0]
    return lambda ids: session.run(None, {"input_ids": ids, "lengths": _lengths(ids)[:, None]})[0]


def _lengths(ids: np.ndarray) -> np.ndarray:
    return np.full(len(ids), ids.shape[1], np.int32)


def product(threads: int) -> Ask:
    """Return a product of two square float32 matrices that ignores its input."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [PRODUCT, PRODUCT]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "product", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    multiply, matrix = _session(model.SerializeToString(), threads), np.ones((PRODUCT, PRODUCT), np.float32)
    return lambda ids: multiply(matrix)[:1]


def flax(folder: Path, threads: int) -> dict[str, Ask]:
    """Return the Flax model under jit; it uses as many threads as the process has cores."""
    import jax
    from flax import nnx

    from jaxtempl.huggingface import load
    from jaxtempl.models import factory

    found = load.read(folder / "weights")
    graphdef = factory.make_graphdef(found.architecture, SLOTS)
    classify = jax.jit(lambda params, ids, lengths: nnx.merge(graphdef, params).classify(ids, lengths))
    params = jax.device_put(found.params)  # host arrays would be copied at each call
    return {"flax": lambda ids: np.asarray(classify(params, ids, _lengths(ids)))}


def torch(folder: Path, threads: int) -> dict[str, Ask]:
    """Return one torch model with each of its attention implementations."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder / "weights").eval()

    def ask(attention: str) -> Ask:
        def classify(ids: np.ndarray) -> np.ndarray:
            model.set_attn_implementation(attention)
            with torch.inference_mode():
                return model(torch.from_numpy(ids.astype(np.int64))).logits.numpy()

        return classify

    return {f"torch {attention}": ask(attention) for attention in ("eager", "sdpa")}


LIBRARIES: Mapping[str, Callable[[Path, int], dict[str, Ask]]] = {
    "onnxruntime": onnx_runtime,
    "flax": flax,
    "torch": torch,
}


def as_intel(folder: Path) -> dict[str, str]:
    """Return an environment in which MKL takes any processor for Intel's; needs a C compiler."""
    library = folder / "as_intel.so"
    subprocess.run(["cc", "-shared", "-x", "c", "-", "-o", library], input=AS_INTEL.encode(), check=True)
    return {"LD_PRELOAD": str(library)}
