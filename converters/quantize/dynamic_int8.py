"""ONNX Runtime's dynamic quantisation: int8 weights, activations quantised as they come; for ONNX Runtime alone.

TensorRT's parser refuses the operators that it writes (DynamicQuantizeLinear, MatMulInteger).
"""

import contextlib
import logging
from collections.abc import Generator
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

from jaxtempl.bundle import onnx_check

HEAD = "head"  # the weights of the head, which stays float32: one row a context costs nothing and decides all


def quantize(model: Path, out: Path) -> None:
    """Writes the model with the products of its blocks in int8, a scale a column.

    Args:
        model: a float32 graph; it need not fit in one file.
        out: file to write; its weights lie beside it.
    """
    head = [node.name for node in onnx_check.load_graph(model).graph.node if HEAD in node.input]
    with _quiet():
        quantize_dynamic(
            model,
            out,
            op_types_to_quantize=["MatMul"],  # those of two activations, in attention, stay as they are
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=head,
            use_external_data_format=True,
        )


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Without its advice to optimise the graph first, which is for traced ones."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
