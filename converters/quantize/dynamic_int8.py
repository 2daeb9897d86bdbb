"""ONNX Runtime's dynamic quantization: int8 weights, with activations quantized at each call; for ONNX Runtime only.

TensorRT's parser rejects its operators (DynamicQuantizeLinear, MatMulInteger).
"""

import contextlib
import logging
from collections.abc import Generator
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

from jaxtempl.bundle import onnx_check

HEAD = "head"  # initializer of the head, which stays float32: one row a context costs little and decides the result


def quantize(model: Path, out: Path) -> None:
    """Write the model with the MatMuls of its blocks in int8 and one scale per column.

    Args:
        model: File of a float32 graph, with or without external data.
        out: File to write, with its external data next to it.
    """
    head = [node.name for node in onnx_check.load_graph(model).graph.node if HEAD in node.input]
    with _quiet():
        quantize_dynamic(
            model,
            out,
            op_types_to_quantize=["MatMul"],  # products of two activations, in attention, stay floats
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=head,
            use_external_data_format=True,
        )


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Silence the advice to optimize the graph first, which is for traced graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
