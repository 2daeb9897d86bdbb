"""Which runs can be converted: those whose classifier reads its window as the paper's do."""

from jaxtempl.errors import UserError
from jaxtempl.runs.run import Run
from jaxtempl.specs.architecture import NeoXArchitecture


def check(found: Run) -> None:
    """Raises UserError for a run of an ablation, which transformers would not read as it was trained."""
    a = found.architecture
    if isinstance(a, NeoXArchitecture) and not a.is_paper_classifier:
        raise UserError(
            f"{found.folder} was fine-tuned with --attention={a.attention} --pooling={a.pooling}, which is measured "
            "but not exported; convert a run of causal attention and last pooling"
        )
