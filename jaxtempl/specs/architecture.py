"""The shape of a model: numbers alone, so that what counts its operations needs no JAX.

Dims: D hidden, H heads, K head_dim (D = H K), F feed-forward, N layers, V vocabulary, L length.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from jaxtempl.errors import UserError

Family = Literal["gpt_neox", "bert"]  # as Hugging Face's model_type says it
AttentionKind = Literal["causal", "full"]
Pooling = Literal["last", "mean", "first"]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What both families have; `configs/sizes/` has the published ones."""

    family: ClassVar[Family]

    layers: int  # N
    hidden: int  # D
    heads: int  # H
    feed_forward: int  # F
    vocabulary: int  # V, rows of the embedding
    positions: int = 2048  # greatest L
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Raises UserError for a shape that no model has."""
        if self.hidden % self.heads:
            raise UserError(f"hidden={self.hidden} is not a multiple of heads={self.heads}; choose one that is")

    @property
    def head_dim(self) -> int:
        """K."""
        return self.hidden // self.heads


@dataclasses.dataclass(frozen=True)
class NeoXArchitecture(Architecture):
    """Shape of a GPT-NeoX model, as Pythia has it."""

    family: ClassVar[Family] = "gpt_neox"

    rotary_fraction: float = 0.25  # share of K that is rotated
    rotary_base: float = 10_000.0
    parallel_residual: bool = True  # x + attention(norm(x)) + mlp(norm(x)), else one after the other
    attention: AttentionKind = "causal"  # of a classifier; a language model's is causal
    pooling: Pooling = "last"  # what a template head reads of the window's real positions

    def __post_init__(self) -> None:
        """Raises UserError for a shape that no model has."""
        super().__post_init__()
        if self.rotary % 2:
            raise UserError(
                f"rotary_fraction={self.rotary_fraction} rotates {self.rotary} of {self.head_dim} dims; "
                "rotary pairs dims, so choose a fraction that gives an even number"
            )

    @property
    def rotary(self) -> int:
        """Dims of each head that are rotated."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def is_paper_classifier(self) -> bool:
        """Whether a classifier is read as the paper's are (section 4.3), which is what can be exported."""
        return (self.attention, self.pooling) == ("causal", "last")


@dataclasses.dataclass(frozen=True)
class BertArchitecture(Architecture):
    """Shape of a BERT model."""

    family: ClassVar[Family] = "bert"

    positions: int = 512
    norm_eps: float = 1e-12
    types: int = 2  # rows of the table of token types, of which the first is used


FAMILIES: dict[Any, type[Architecture]] = {kind.family: kind for kind in (NeoXArchitecture, BertArchitecture)}


def architecture_from(values: Mapping[str, Any]) -> Architecture:
    """The architecture that a size's file or a run's architecture.json describes; without a family it is GPT-NeoX.

    Raises:
        UserError: a family or a field that is not known, or a shape that no model has.
    """
    fields = {name: value for name, value in values.items() if name not in ("family", "format")}
    family = values.get("family", NeoXArchitecture.family)
    if family not in FAMILIES:
        raise UserError(f"an architecture's family is {family!r}; {' or '.join(map(repr, FAMILIES))} is allowed")
    try:
        return FAMILIES[family](**fields)
    except TypeError as error:
        raise UserError(f"an architecture of {family} is not known by these fields: {error}") from None


def to_dict(architecture: Architecture) -> dict[str, Any]:
    """What `of` reads again."""
    return {"family": architecture.family, **dataclasses.asdict(architecture)}
