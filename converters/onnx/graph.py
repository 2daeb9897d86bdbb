"""A model's parameters -> one ONNX graph of standard operators, without an exporter and without tracing.

Dims: B batch, L length, V vocabulary, S slots.
"""

import onnx_ir as ir

from converters.onnx.bert import BertGraph
from converters.onnx.layers import GraphOptions, GraphParams
from converters.onnx.neox import NeoXGraph
from jaxtempl.specs.architecture import Architecture, BertArchitecture, NeoXArchitecture


def build(params: GraphParams, a: Architecture, options: GraphOptions) -> ir.Model:
    """Build the graph of a model; each weight is computed when the graph is saved.

    The inputs are `input_ids` int32 [B L], padded on the right, and `lengths` int32 [B 1]; a GPT-NeoX language model
    has no `lengths`. The output is `logits` float32: [B S] for a template head, [B L V] for a language model.
    The value `embedded` enters block 0, and `block_I/residual` is the residual stream after block I.
    """
    if isinstance(a, BertArchitecture):
        return BertGraph(params, a, options).model()
    assert isinstance(a, NeoXArchitecture)
    return NeoXGraph(params, a, options).model()
