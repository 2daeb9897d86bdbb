"""What is trained: a task is a loss over one microbatch and the metrics of its sums.

A loss returns the sum over the microbatch, never a mean, so that microbatches of any size add up to their
batch; fit() divides once, by the summed weight.

Dims: B rows, L length, S slots.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Integer, PyTree

from jaxtempl.models import bert
from jaxtempl.models.bert import Bert
from jaxtempl.models.cross_entropy import summed_cross_entropy
from jaxtempl.models.neox import NeoX
from jaxtempl.parallel import collectives
from jaxtempl.specs import flops

Sums = dict[str, Float[Array, ""]]
DeviceMicrobatch = Mapping[str, Array]
HostBatch = Sequence[Mapping[str, Any]]  # microbatches, as numpy made them


class Objective(NamedTuple):
    """A model with its objective.

    Attributes:
        graphdef: the model's static half; `nnx.merge(graphdef, params)` is the model.
        loss: (params, microbatch) -> (summed loss, sums to be reported, `weight` among them).
        metrics: summed sums of a batch -> named means.
    """

    graphdef: nnx.GraphDef[Any]
    loss: Callable[[PyTree, DeviceMicrobatch], tuple[Float[Array, ""], Sums]]
    metrics: Callable[[Sums], Sums]


def causal_lm(graphdef: nnx.GraphDef[NeoX], mask_documents: bool = False) -> Objective:
    """Next-token prediction over packed rows, as the paper has it: across documents, no mask between them.

    A microbatch holds `tokens` [B L] and `segments` [B L], 0 where a row is padded; loss in nats.

    Args:
        graphdef: the model's static half.
        mask_documents: no position attends to another document of its row.
    """

    def loss(params: PyTree, batch: DeviceMicrobatch) -> tuple[Float[Array, ""], Sums]:
        tokens = batch["tokens"].astype(jnp.int32)
        # The last position predicts nothing; rolling keeps every shape, and chunks of L, even.
        targets, weights = jnp.roll(tokens, -1, axis=1), _predicted(batch["segments"])
        params = _outside_blocks(params)
        model = nnx.merge(graphdef, params)
        documents = batch["segments"] if mask_documents else None
        hidden = collectives.copy_to_tensor_parallel(model.hidden(tokens, documents))
        total: Any = summed_cross_entropy(hidden, params["head"]["kernel"], targets, weights, model.platform)
        operations = tokens.size * flops.per_token(model.architecture, tokens.shape[1])
        return total, {"loss": total, "weight": weights.sum(), **_work(tokens, operations)}

    return Objective(graphdef, loss, lambda sums: {"loss": sums["loss"] / _count(sums)})


def masked_lm(graphdef: nnx.GraphDef[Bert], mask_documents: bool = False) -> Objective:
    """Telling the hidden tokens of packed rows (Devlin et al., 2018); loss in nats.

    A microbatch holds what `masking.Masker` makes of rows: `tokens` [B L], `segments` [B L], and `places`, `targets`
    and `weights` [B M].

    Args:
        graphdef: the model's static half.
        mask_documents: no position attends to another document of its row.
    """

    def loss(params: PyTree, batch: DeviceMicrobatch) -> tuple[Float[Array, ""], Sums]:
        params = _outside_blocks(params)
        model, tokens = nnx.merge(graphdef, params), batch["tokens"]
        hidden = model.hidden(tokens, bert.attention_mask(batch["segments"], mask_documents))
        told = model.head(jnp.take_along_axis(hidden, batch["places"][..., None], axis=1))
        weights = batch["weights"].astype(jnp.float32)
        total: Any = summed_cross_entropy(
            collectives.copy_to_tensor_parallel(told),
            params["embed"]["embedding"].T,
            batch["targets"],
            weights,
            model.platform,
            collectives.local_columns(params["head"]["bias"], params["embed"]["embedding"].shape[0]),
        )
        work = _work(tokens, len(tokens) * flops.per_masked_row(model.architecture, tokens.shape[1], told.shape[1]))
        return total, {"loss": total, "weight": weights.sum(), **work}

    return Objective(graphdef, loss, lambda sums: {"loss": sums["loss"] / _count(sums)})


def _count(sums: Sums) -> Float[Array, ""]:
    """What was predicted; 1 where nothing was, so that such a batch has loss 0 and not NaN."""
    return jnp.maximum(sums["weight"], 1.0)


def _work(tokens: Integer[Array, "B L"], operations: int) -> Sums:
    """What a microbatch took: tokens, padding among them, and operations of matrix products."""
    return {"tokens": jnp.float32(tokens.size), "flops": jnp.float32(operations)}


def _outside_blocks(params: PyTree) -> PyTree:
    """Embedding, last LayerNorm and head brought together from the devices; a block's weights come in its own turn."""
    outside = {name: part for name, part in params.items() if name != "blocks"}
    return {**params, **collectives.gather_params(outside)}


def _predicted(segments: Integer[Array, "B L"]) -> Float[Array, "B L"]:
    """1 where the next position of the row holds a real token."""
    following = jnp.roll(segments, -1, axis=1).at[:, -1].set(0)
    return (following > 0).astype(jnp.float32)


def template_classification(graphdef: nnx.GraphDef[Any]) -> Objective:
    """Template classification on the right-most real token (paper section 4.3), on [CLS] of BERT.

    A microbatch holds `tokens` [B L], `lengths` [B], `slots` [B] and `weights` [B], 0 on a filler row.
    """

    def loss(params: PyTree, batch: DeviceMicrobatch) -> tuple[Float[Array, ""], Sums]:
        model, (rows, length) = nnx.merge(graphdef, _outside_blocks(params)), batch["tokens"].shape
        logits = model.classify(batch["tokens"], batch["lengths"])
        total, correct = _classified(logits, batch["slots"], batch["weights"])
        work = _work(batch["tokens"], rows * flops.per_context(model.architecture, length, logits.shape[1]))
        return total, {"loss": total, "weight": batch["weights"].sum(), "top1": correct, **work}

    def metrics(sums: Sums) -> Sums:
        return {"loss": sums["loss"] / _count(sums), "top1": sums["top1"] / _count(sums)}

    return Objective(graphdef, loss, metrics)


def _classified(
    logits: Float[Array, "B S"], slots: Int[Array, " B"], weights: Float[Array, " B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sums of -log p(slot), in nats, and of hits at the top."""
    true = jnp.take_along_axis(jax.nn.log_softmax(logits), slots[:, None], axis=1)[:, 0]
    return -jnp.sum(weights * true), jnp.sum(weights * (logits.argmax(axis=1) == slots))
