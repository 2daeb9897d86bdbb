"""Training objectives: the loss of one microbatch, and the metrics of a batch.

A loss returns the sum over the microbatch, not the mean, so that microbatches of any size add up to their batch. The
update divides once, by the summed weight.

Dims: B rows, L length, P predicted positions of a row, D hidden, V vocabulary, S slots.
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
from jaxtempl.specs.architecture import Architecture, BertArchitecture

Sums = dict[str, Float[Array, ""]]
DeviceMicrobatch = Mapping[str, Array]
HostBatch = Sequence[Mapping[str, Any]]  # microbatches of numpy arrays


class Objective(NamedTuple):
    """A model with its loss and metrics.

    Attributes:
        graphdef: Graphdef of the model; `nnx.merge(graphdef, params)` is the model.
        loss: Maps params and a microbatch to the summed loss and to sums that include `weight`.
        metrics: Maps the sums of a batch to named means.
        token_losses: Maps params and a microbatch to the loss of each predicted position, in nats, for evaluation; the
            caller excludes positions of weight 0. None for a classifier.
    """

    graphdef: nnx.GraphDef[Any]
    loss: Callable[[PyTree, DeviceMicrobatch], tuple[Float[Array, ""], Sums]]
    metrics: Callable[[Sums], Sums]
    token_losses: Callable[[PyTree, DeviceMicrobatch], Float[Array, "B P"]] | None = None


class HeadInputs(NamedTuple):
    """The arguments of a cross-entropy: the head's input at each predicted position, and the head."""

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
        graphdef: Graphdef of the model.
        read: Maps model, params and a microbatch to the head's inputs.
        operations: Maps architecture, length and number of targets to the operations of training on a row.
    """

    def read_microbatch(params: PyTree, batch: DeviceMicrobatch) -> tuple[Any, HeadInputs]:
        params = _gather_outside_blocks(params)
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
    """Return next-token prediction over packed rows, across documents as in the paper.

    A microbatch holds `tokens` [B L] and `segments` [B L], 0 at padding. With `positions`, `targets` and `weights`
    [B P], it predicts only those targets, each from the token at its position. The loss is in nats.

    Args:
        graphdef: Graphdef of the model.
        mask_documents: Whether positions attend to their own document only.
    """

    def read(model: Any, params: PyTree, batch: DeviceMicrobatch) -> HeadInputs:
        tokens = batch["tokens"].astype(jnp.int32)
        hidden = model.hidden(tokens, batch["segments"] if mask_documents else None)
        if "positions" in batch:
            hidden = jnp.take_along_axis(hidden, batch["positions"][..., None], axis=1)
            targets, weights = batch["targets"], batch["weights"].astype(jnp.float32)
        else:  # The last position predicts nothing; rolling keeps the shapes, so that chunks of L stay even.
            targets, weights = jnp.roll(tokens, -1, axis=1), _predicted(batch["segments"])
        hidden = collectives.copy_to_tensor_parallel(hidden)
        return HeadInputs(hidden, params["head"]["kernel"], targets, weights)

    return _language_model(graphdef, read, lambda a, length, _: length * flops.per_token(a, length))


def masked_lm(graphdef: nnx.GraphDef[Bert], mask_documents: bool = False) -> Objective:
    """Return masked language modelling of packed rows (Devlin et al., 2018).

    A microbatch holds the output of `mlm.Masker`: `tokens` and `segments` [B L], and `positions`, `targets` and
    `weights` [B P]. The loss is in nats.

    Args:
        graphdef: Graphdef of the model.
        mask_documents: Whether positions attend to their own document only.
    """

    def read(model: Any, params: PyTree, batch: DeviceMicrobatch) -> HeadInputs:
        hidden = model.hidden(batch["tokens"], bert.attention_mask(batch["segments"], mask_documents))
        masked = model.head(jnp.take_along_axis(hidden, batch["positions"][..., None], axis=1))
        embedding = params["embed"]["embedding"]
        bias: Any = collectives.local_columns(params["head"]["bias"], len(embedding))
        weights = batch["weights"].astype(jnp.float32)
        return HeadInputs(collectives.copy_to_tensor_parallel(masked), embedding.T, batch["targets"], weights, bias)

    return _language_model(graphdef, read, flops.per_masked_row)


def language_modelling(a: Architecture, graphdef: nnx.GraphDef[Any], mask_documents: bool = False) -> Objective:
    """Return the objective of phase 1: `causal_lm`, or `masked_lm` for a BERT."""
    return (masked_lm if isinstance(a, BertArchitecture) else causal_lm)(graphdef, mask_documents)


def _count(sums: Sums) -> Float[Array, ""]:
    """Return the summed weight, at least 1, so that an empty batch has loss 0 instead of NaN."""
    return jnp.maximum(sums["weight"], 1.0)


def _work(tokens: Integer[Array, "B L"], operations: int) -> Sums:
    """Return a microbatch's tokens, padding included, and its operations of matrix products."""
    return {"tokens": jnp.float32(tokens.size), "flops": jnp.float32(operations)}


def _gather_outside_blocks(params: PyTree) -> PyTree:
    """Gather embedding, final LayerNorm and head; the scan gathers each block's weights when it runs the block."""
    outside = {name: part for name, part in params.items() if name != "blocks"}
    return {**params, **collectives.gather_params(outside)}


def _predicted(segments: Integer[Array, "B L"]) -> Float[Array, "B L"]:
    """Return 1 at positions whose next position holds a real token, else 0."""
    following = jnp.roll(segments, -1, axis=1).at[:, -1].set(0)
    return (following > 0).astype(jnp.float32)


def template_classification(graphdef: nnx.GraphDef[Any]) -> Objective:
    """Return template classification on the right-most real token (paper section 4.3), or on [CLS] of a BERT.

    A microbatch holds `tokens` [B L], `lengths` [B], `slots` [B] and `weights` [B], 0 at filler rows.
    """

    def loss(params: PyTree, batch: DeviceMicrobatch) -> tuple[Float[Array, ""], Sums]:
        model, (rows, length) = nnx.merge(graphdef, _gather_outside_blocks(params)), batch["tokens"].shape
        logits = model.classify(batch["tokens"], batch["lengths"])
        total, correct = _classification_sums(logits, batch["slots"], batch["weights"])
        work = _work(batch["tokens"], rows * flops.per_context(model.architecture, length, logits.shape[1]))
        return total, {"loss": total, "weight": batch["weights"].sum(), "top1": correct, **work}

    def metrics(sums: Sums) -> Sums:
        return {"loss": sums["loss"] / _count(sums), "top1": sums["top1"] / _count(sums)}

    return Objective(graphdef, loss, metrics)


def _classification_sums(
    logits: Float[Array, "B S"], slots: Int[Array, " B"], weights: Float[Array, " B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the weighted sums of -log p(slot) in nats, and of top-1 hits."""
    log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), slots[:, None], axis=1)[:, 0]
    return -jnp.sum(weights * log_probability), jnp.sum(weights * (logits.argmax(axis=1) == slots))
