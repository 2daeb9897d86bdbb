"""The shape of a GPT-NeoX model: numbers alone, so that what counts its operations needs no JAX.

Dims: D hidden, H heads, K head_dim (D = H K), F feed-forward, N layers, V vocabulary, L length.
"""

import dataclasses

from jaxtempl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Shape of a GPT-NeoX model; `configs/sizes/` has the published ones."""

    layers: int  # N
    hidden: int  # D
    heads: int  # H
    feed_forward: int  # F
    vocabulary: int  # V, rows of the embedding
    positions: int = 2048  # greatest L
    rotary_fraction: float = 0.25  # share of K that is rotated
    rotary_base: float = 10_000.0
    parallel_residual: bool = True  # x + attention(norm(x)) + mlp(norm(x)), else one after the other
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Raises UserError for a shape that no model has."""
        if self.hidden % self.heads:
            raise UserError(f"hidden={self.hidden} is not a multiple of heads={self.heads}; choose one that is")
        if self.rotary % 2:
            raise UserError(
                f"rotary_fraction={self.rotary_fraction} rotates {self.rotary} of {self.head_dim} dims; "
                "rotary pairs dims, so choose a fraction that gives an even number"
            )

    @property
    def head_dim(self) -> int:
        """K."""
        return self.hidden // self.heads

    @property
    def rotary(self) -> int:
        """Dims of each head that are rotated."""
        return int(self.head_dim * self.rotary_fraction)
