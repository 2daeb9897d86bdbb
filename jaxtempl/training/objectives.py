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
from jaxtempl.models.cross_entropy import summed_cross_entropy, token_cross_entropy
from jaxtempl.models.neox import NeoX
from jaxtempl.parallel import collectives
from jaxtempl.specs import flops
from jaxtempl.specs.architecture import Architecture

Sums = dict[str, Float[Array, ""]]
DeviceMicrobatch = Mapping[str, Array]
HostBatch = Sequence[Mapping[str, Any]]  # microbatches, as numpy made them


class Objective(NamedTuple):
    """A model with its objective.

    Attributes:
        graphdef: the model's static half; `nnx.merge(graphdef, params)` is the model.
        loss: (params, microbatch) -> (summed loss, sums to be reported, `weight` among them).
        metrics: summed sums of a batch -> named means.
        token_losses: (params, microbatch) -> loss of each position with a target, in nats, for evaluation; the caller
            leaves out positions of weight 0. None for a classifier.
    """

    graphdef: nnx.GraphDef[Any]
    loss: Callable[[PyTree, DeviceMicrobatch], tuple[Float[Array, ""], Sums]]
    metrics: Callable[[Sums], Sums]
    token_losses: Callable[[PyTree, DeviceMicrobatch], Float[Array, "B P"]] | None = None


class HeadInputs(NamedTuple):
    """The arguments of a cross-entropy: what the head reads at each position with a target, and the head itself."""

    hidden: Float[Array, "B P D"]
    kernel: Float[Array, "D V"]
    targets: Int[Array, "B P"]
    weights: Float[Array, "B P"]
    bias: Float[Array, " V"] | None = None


def _language_model(
    graphdef: nnx.GraphDef[Any],
    read: Callable[[Any, PyTree, DeviceMicrobatch], HeadInputs],
    operations: Callable[[Architecture, int, int], int],
) -> Objective:
    """Return the objective of a language model.

    Args:
        graphdef: the model's static half.
        read: (model, params, microbatch) -> what the head reads.
        operations: (architecture, length, targets) -> operations that a trained row takes.
    """

    def read_microbatch(params: PyTree, batch: DeviceMicrobatch) -> tuple[Any, HeadInputs]:
        params = _outside_blocks(params)
        model: Any = nnx.merge(graphdef, params)
        return model, read(model, params, batch)

    def loss(params: PyTree, batch: DeviceMicrobatch) -> tuple[Float[Array, ""], Sums]:
        model, (hidden, kernel, targets, weights, bias) = read_microbatch(params, batch)
        total: Any = summed_cross_entropy(hidden, kernel, targets, weights, model.platform, bias)
        rows, length = batch["tokens"].shape
        work = _work(batch["tokens"], rows * operations(model.architecture, length, targets.shape[1]))
        return total, {"loss": total, "weight": weights.sum(), **work}

    def token_losses(params: PyTree, batch: DeviceMicrobatch) -> Float[Array, "B P"]:
        model, (hidden, kernel, targets, _, bias) = read_microbatch(params, batch)
        return token_cross_entropy(hidden, kernel, targets, model.platform, bias)

    return Objective(graphdef, loss, lambda sums: {"loss": sums["loss"] / _count(sums)}, token_losses)


def causal_lm(graphdef: nnx.GraphDef[NeoX], mask_documents: bool = False) -> Objective:
    """Return next-token prediction over packed rows, as in the paper: across documents, without a mask between them.

    A microbatch holds `tokens` [B L] and `segments` [B L], 0 where a row is padded; loss in nats. With `positions`,
    `targets` and `weights` [B P] it predicts those targets alone, each from the token at its position.

    Args:
        graphdef: the model's static half.
        mask_documents: no position attends to another document of its row.
    """

    def read(model: Any, params: PyTree, batch: DeviceMicrobatch) -> HeadInputs:
        tokens = batch["tokens"].astype(jnp.int32)
        hidden = model.hidden(tokens, batch["segments"] if mask_documents else None)
        if "positions" in batch:
            hidden = jnp.take_along_axis(hidden, batch["positions"][..., None], axis=1)
            targets, weights = batch["targets"], batch["weights"].astype(jnp.float32)
        else:  # The last position predicts nothing; rolling keeps every shape, and chunks of L, even.
            targets, weights = jnp.roll(tokens, -1, axis=1), _predicted(batch["segments"])
        hidden = collectives.copy_to_tensor_parallel(hidden)
        return HeadInputs(hidden, params["head"]["kernel"], targets, weights)

    return _language_model(graphdef, read, lambda a, length, _: length * flops.per_token(a, length))


def masked_lm(graphdef: nnx.GraphDef[Bert], mask_documents: bool = False) -> Objective:
    """Return prediction of the masked tokens of packed rows (Devlin et al., 2018); loss in nats.

    A microbatch holds what `mlm.Masker` makes of rows: `tokens` [B L], `segments` [B L], and `positions`, `targets`
    and `weights` [B M].

    Args:
        graphdef: the model's static half.
        mask_documents: no position attends to another document of its row.
    """

    def read(model: Any, params: PyTree, batch: DeviceMicrobatch) -> HeadInputs:
        hidden = model.hidden(batch["tokens"], bert.attention_mask(batch["segments"], mask_documents))
        masked = model.head(jnp.take_along_axis(hidden, batch["positions"][..., None], axis=1))
        embedding = params["embed"]["embedding"]
        bias = collectives.local_columns(params["head"]["bias"], len(embedding))
        weights = batch["weights"].astype(jnp.float32)
        return HeadInputs(collectives.copy_to_tensor_parallel(masked), embedding.T, batch["targets"], weights, bias)

    return _language_model(graphdef, read, flops.per_masked_row)


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
