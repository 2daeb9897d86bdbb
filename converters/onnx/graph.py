"""A model's parameters -> one ONNX graph of standard operators: no exporter, no tracing.

Dims: B batch, L length, V vocabulary, S slots.
"""

import onnx_ir as ir

from converters.onnx.bert import BertGraph
from converters.onnx.layers import GraphOptions, GraphParams
from converters.onnx.neox import NeoXGraph
from jaxtempl.specs.architecture import Architecture, BertArchitecture, NeoXArchitecture


def build(params: GraphParams, a: Architecture, options: GraphOptions) -> ir.Model:
    """The model; its weights are made one by one when it is stored.

    Inputs are `input_ids` int32 [B L], padded on the right, and `lengths` int32 [B 1] where the network needs them: a
    GPT-NeoX language model does not. The output is `logits` float32: of a template head [B S], of a language model
    [B L V]. Value `block_I/residual` is the residual stream after block I, `embedded` what enters block 0.
    """
    if isinstance(a, BertArchitecture):
        return BertGraph(params, a, options).model()
    assert isinstance(a, NeoXArchitecture)
    return NeoXGraph(params, a, options).model()
