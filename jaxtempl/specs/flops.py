"""Parameters, floating-point operations a token, and the share of a device's peak that a training reaches.

Dims: D hidden, F feed-forward, N layers, V vocabulary, L length of a row.
"""

from collections.abc import Sequence

from jaxtempl.specs.accelerators import ACCELERATORS, LOOKALIKES
from jaxtempl.specs.architecture import Architecture, BertArchitecture, NeoXArchitecture

# Dense bfloat16 operations a second by how the name that JAX gives a device begins.
PEAKS = {device.kind: device.peak for device in ACCELERATORS.values()} | LOOKALIKES


def parameter_count(a: Architecture, embeddings: bool = True) -> int:
    """Of the language model; without `embeddings`, as scaling laws count: neither tables nor head."""
    layer = 4 * a.hidden**2 + 2 * a.hidden * a.feed_forward  # matrices
    layer += 4 * a.hidden + a.feed_forward + a.hidden  # their biases: 3 D + D, F, D
    layer += 4 * a.hidden  # two LayerNorms
    outside = _bert_tables(a) if isinstance(a, BertArchitecture) else 2 * a.vocabulary * a.hidden
    return a.layers * layer + 2 * a.hidden + (outside if embeddings else 0)


def _bert_tables(a: BertArchitecture) -> int:
    """Tokens, positions and types, and a head of a layer, its LayerNorm, and a bias for each token."""
    return (a.vocabulary + a.positions + a.types) * a.hidden + a.hidden**2 + 3 * a.hidden + a.vocabulary


def per_token(a: Architecture, length: int) -> int:
    """Operations of matrix products, forward and backward, that training on one token of a row takes (issue 3).

    Attention counts the full square, masked half included, and the unembedding counts; embeddings are looked up.
    Backward is twice forward; what rematerialisation computes again does not count.
    """
    return 3 * (a.layers * _layer(a, length) + 2 * a.hidden * a.vocabulary)


def per_masked_row(a: Architecture, length: int, told: int) -> int:
    """The same for a row of masked language modelling, of which so many tokens are told."""
    return 3 * (a.layers * length * _layer(a, length) + told * 2 * (a.hidden**2 + a.hidden * a.vocabulary))


def per_context(a: Architecture, length: int, slots: int) -> int:
    """The same for one labelled context: of the last layer, one position of all that is not keys and values.

    GPT-NeoX's queries come with the keys and values, at all positions; BERT's pooler is one layer more. Where a head
    reads the mean of all positions, the last layer is whole.
    """
    if isinstance(a, NeoXArchitecture) and a.pooling == "mean":
        return 3 * (a.layers * length * _layer(a, length) + 2 * a.hidden * slots)
    whole = (a.layers - 1) * length * _layer(a, length)
    last = length * 6 * a.hidden**2 + 2 * a.hidden**2 + 4 * a.hidden * a.feed_forward + 4 * length * a.hidden
    if isinstance(a, BertArchitecture):
        last += 4 * a.hidden**2 - length * 2 * a.hidden**2
    return 3 * (whole + last + 2 * a.hidden * slots)


def _layer(a: Architecture, length: int) -> int:
    """Forward, a token."""
    return 2 * (4 * a.hidden**2 + 2 * a.hidden * a.feed_forward) + 4 * length * a.hidden


def six_nd(a: Architecture, tokens: float, embeddings: bool) -> float:
    """The usual estimate 6 N D of a training's operations (Kaplan et al., 2020), D being tokens."""
    return 6.0 * parameter_count(a, embeddings) * tokens


def peak(kinds: Sequence[str]) -> float | None:
    """Operations a second of devices of these kinds (`jax.Device.device_kind`); None where one is not known."""
    names = [match_device(kind) for kind in kinds]
    return sum(PEAKS[name] for name in names) if all(names) else None


def match_device(kind: str) -> str:
    """The longest name in `PEAKS` that begins a kind of device; empty where there is none."""
    return max((name for name in PEAKS if kind.startswith(name)), key=len, default="")
