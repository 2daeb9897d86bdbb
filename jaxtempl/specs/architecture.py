"""The shape of a model, as numbers. Counting its operations needs no JAX.

Dims: D hidden, H heads, K head_dim (D = H K), F feed-forward, N layers, V vocabulary, L length.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from jaxtempl.errors import UserError

Family = Literal["gpt_neox", "bert"]  # Hugging Face's model_type
AttentionKind = Literal["causal", "full"]
Pooling = Literal["last", "mean", "first"]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Shape that both families share; `configs/sizes/` holds the published ones."""

    family: ClassVar[Family]

    layers: int  # N
    hidden: int  # D
    heads: int  # H
    feed_forward: int  # F
    vocabulary: int  # V, rows of the embedding
    positions: int = 2048  # maximum L
    norm_eps: float = 1e-5
    pooling: Pooling = "last"  # positions of the window that a template head reads

    def __post_init__(self) -> None:
        """Raise UserError for a shape that no model has."""
        if self.hidden % self.heads:
            raise UserError(f"hidden={self.hidden} is not a multiple of heads={self.heads}; choose one that is")

    @property
    def head_dim(self) -> int:
        """K."""
        return self.hidden // self.heads


@dataclasses.dataclass(frozen=True)
class NeoXArchitecture(Architecture):
    """Shape of a GPT-NeoX model; the defaults are Pythia's."""

    family: ClassVar[Family] = "gpt_neox"

    rotary_fraction: float = 0.25  # fraction of K that is rotated
    rotary_base: float = 10_000.0
    parallel_residual: bool = True  # x + attention(norm(x)) + mlp(norm(x)), else in sequence
    attention: AttentionKind = "causal"  # in a classifier; a language model's is always causal

    def __post_init__(self) -> None:
        """Raise UserError for a shape that no model has."""
        super().__post_init__()
        if self.rotary % 2:
            raise UserError(
                f"rotary_fraction={self.rotary_fraction} rotates {self.rotary} of {self.head_dim} dims; "
                "rotary pairs dims, so choose a fraction that gives an even number"
            )

    @property
    def rotary(self) -> int:
        """Number of rotated dims of each head."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def is_paper_classifier(self) -> bool:
        """Return whether a classifier reads its window as in the paper (section 4.3), which an export requires."""
        return (self.attention, self.pooling) == ("causal", "last")


@dataclasses.dataclass(frozen=True)
class BertArchitecture(Architecture):
    """Shape of a BERT model."""

    family: ClassVar[Family] = "bert"

    positions: int = 512
    norm_eps: float = 1e-12
    types: int = 2  # rows of the token-type table; only the first is used
    pooling: Pooling = "first"  # [CLS] through the pooler; mean has no pooler


FAMILIES: dict[Any, type[Architecture]] = {kind.family: kind for kind in (NeoXArchitecture, BertArchitecture)}


def architecture_from(values: Mapping[str, Any]) -> Architecture:
    """Return the architecture in a size file or a run's architecture.json; the default family is GPT-NeoX.

    Raises:
        UserError: The family or a field is unknown, or no model has such a shape.
    """
    fields = {name: value for name, value in values.items() if name not in ("family", "format")}
    family = values.get("family", NeoXArchitecture.family)
    if family not in FAMILIES:
        raise UserError(f"an architecture's family is {family!r}; allowed: {', '.join(map(repr, FAMILIES))}")
    try:
        return FAMILIES[family](**fields)
    except TypeError as error:
        raise UserError(f"an architecture of {family} does not have these fields: {error}") from None


def to_dict(architecture: Architecture) -> dict[str, Any]:
    """Return a dict that `architecture_from` reads."""
    return {"family": architecture.family, **dataclasses.asdict(architecture)}
