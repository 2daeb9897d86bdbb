"""Check that a run can be converted: ablations of attention and pooling cannot."""

from jaxtempl.errors import UserError
from jaxtempl.runs.run import Run
from jaxtempl.specs.architecture import NeoXArchitecture


def check(found: Run) -> None:
    """Raise UserError for a run of an ablation, which other libraries would not compute as it was trained."""
    a = found.architecture
    if isinstance(a, NeoXArchitecture) and not a.is_paper_classifier:
        raise UserError(
            f"{found.folder} was fine-tuned with --attention={a.attention} --pooling={a.pooling}, which is measured "
            "but not exported; convert a run of causal attention and last pooling"
        )
