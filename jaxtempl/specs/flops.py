"""Parameter counts, floating-point operations, and the peak of devices.

Dims: D hidden, F feed-forward, N layers, V vocabulary, L length of a row.
"""

from collections.abc import Sequence

from jaxtempl.specs.accelerators import ACCELERATORS, VARIANT_PEAKS
from jaxtempl.specs.architecture import Architecture, BertArchitecture

# Dense bfloat16 operations a second, by prefix of JAX's `device_kind`.
PEAKS = {device.kind: device.peak for device in ACCELERATORS.values()} | VARIANT_PEAKS


def parameter_count(a: Architecture, embeddings: bool = True) -> int:
    """Return the number of a language model's parameters.

    Args:
        a: Architecture of the model.
        embeddings: Whether to count embedding tables and head, which scaling laws leave out.
    """
    layer = 4 * a.hidden**2 + 2 * a.hidden * a.feed_forward  # matrices
    layer += 4 * a.hidden + a.feed_forward + a.hidden  # their biases: 3 D + D, F, D
    layer += 4 * a.hidden  # two LayerNorms
    outside = _bert_tables(a) if isinstance(a, BertArchitecture) else 2 * a.vocabulary * a.hidden
    return a.layers * layer + 2 * a.hidden + (outside if embeddings else 0)


def _bert_tables(a: BertArchitecture) -> int:
    """Count the three embedding tables, and a head of one layer, its LayerNorm, and a bias for each token."""
    return (a.vocabulary + a.positions + a.types) * a.hidden + a.hidden**2 + 3 * a.hidden + a.vocabulary


def per_token(a: Architecture, length: int) -> int:
    """Return the operations of matrix products that training on one token of a row takes, forward and backward.

    As issue 3 counts them: attention is the full square, the masked half included, and the unembedding counts, but not
    the embedding lookup. Backward is twice forward. Rematerialisation does not count.
    """
    return 3 * (a.layers * _layer(a, length) + 2 * a.hidden * a.vocabulary)


def per_masked_row(a: Architecture, length: int, predicted: int) -> int:
    """Return the operations for a row of masked language modelling with `predicted` masked tokens."""
    return 3 * (a.layers * length * _layer(a, length) + predicted * 2 * (a.hidden**2 + a.hidden * a.vocabulary))


def per_context(a: Architecture, length: int, slots: int) -> int:
    """Return the operations for one labelled context, whose last layer computes one position except keys and values.

    GPT-NeoX computes queries together with keys and values, at all positions. BERT's pooler is one more layer. If the
    head reads the mean of all positions, the last layer is computed whole.
    """
    if a.pooling == "mean":
        return 3 * (a.layers * length * _layer(a, length) + 2 * a.hidden * slots)
    whole = (a.layers - 1) * length * _layer(a, length)
    last = length * 6 * a.hidden**2 + 2 * a.hidden**2 + 4 * a.hidden * a.feed_forward + 4 * length * a.hidden
    if isinstance(a, BertArchitecture):
        last += 4 * a.hidden**2 - length * 2 * a.hidden**2
    return 3 * (whole + last + 2 * a.hidden * slots)


def _layer(a: Architecture, length: int) -> int:
    """Return a layer's forward operations for one token."""
    return 2 * (4 * a.hidden**2 + 2 * a.hidden * a.feed_forward) + 4 * length * a.hidden


def six_nd(a: Architecture, tokens: float, embeddings: bool) -> float:
    """Return the estimate 6 N D of a training's operations (Kaplan et al., 2020), with D tokens."""
    return 6.0 * parameter_count(a, embeddings) * tokens


def peak(kinds: Sequence[str]) -> float | None:
    """Return the operations a second of devices of these kinds (`jax.Device.device_kind`); None if one is unknown."""
    names = [match_device(kind) for kind in kinds]
    return sum(PEAKS[name] for name in names) if all(names) else None


def match_device(kind: str) -> str:
    """Return the longest name in `PEAKS` that is a prefix of a device kind, or an empty string."""
    return max((name for name in PEAKS if kind.startswith(name)), key=len, default="")
